"""A laboratory's system: POST /reports finalises a report and publishes `reports.finalized`.

It knows a broker and a topic, and nothing of the worker. BROKER says where:

    nats://127.0.0.1:4222       nats-py
    kafka://127.0.0.1:9092      aiokafka
    http://127.0.0.1:7464       the embedded queue, over the admin port of a worker (httpx)

    uvicorn producer:app --port 8000
"""

import json
import os
import uuid
from contextlib import asynccontextmanager
from datetime import datetime, timezone

import aiokafka
import httpx
import nats
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

BROKER = os.environ.get("BROKER", "nats://127.0.0.1:4222")
TOPIC = "reports.finalized"


def attributes(event_id, key, prefix):
    """A CloudEvent in binary mode: its attributes are headers, the body is the data. Plain JSON without them does too."""
    event = {"specversion": "1.0", "id": event_id, "source": "/laboratory", "type": TOPIC, "partitionkey": key}
    return {f"{prefix}{name}": value for name, value in event.items()} | {"content-type": "application/json"}


class Nats:
    """JetStream confirms once the event is stored. The worker makes the stream where there is none."""

    async def open(self, url):
        self.connection = await nats.connect(url)
        self.stream = self.connection.jetstream()

    async def publish(self, event_id, key, body):
        # Nats-Msg-Id: a second publication of this event within the stream's window is dropped.
        headers = {"Nats-Msg-Id": event_id, **attributes(event_id, key, "ce-")}
        await self.stream.publish(TOPIC, body, headers=headers)

    async def close(self):
        await self.connection.drain()


class Kafka:
    """All in-sync replicas have it before the answer."""

    async def open(self, url):
        servers = url.removeprefix("kafka://")
        self.producer = aiokafka.AIOKafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True)
        await self.producer.start()

    async def publish(self, event_id, key, body):
        headers = [(name, value.encode()) for name, value in attributes(event_id, key, "ce_").items()]
        await self.producer.send_and_wait(TOPIC, body, key=key.encode(), headers=headers)

    async def close(self):
        await self.producer.stop()


class Embedded:
    """202 once the event is stored."""

    async def open(self, url):
        self.client = httpx.AsyncClient(base_url=url)

    async def publish(self, event_id, key, body):
        headers = attributes(event_id, key, "ce-")
        answer = await self.client.post(f"/api/v1/topics/{TOPIC}", content=body, headers=headers)
        answer.raise_for_status()

    async def close(self):
        await self.client.aclose()


publisher = {"nats": Nats, "kafka": Kafka, "http": Embedded}[BROKER.split("://")[0]]()


@asynccontextmanager
async def lifespan(_: FastAPI):
    await publisher.open(BROKER)
    yield
    await publisher.close()


app = FastAPI(lifespan=lifespan)


class Report(BaseModel):
    report_id: str
    patient_id: str


@app.post("/reports", status_code=202)
async def finalise(report: Report):
    event_id = str(uuid.uuid4())
    body = json.dumps({**report.model_dump(), "timestamp": datetime.now(timezone.utc).isoformat()}).encode()
    try:
        await publisher.publish(event_id, report.patient_id, body)
    except Exception as error:  # The event is not stored: say so, and let the caller try again.
        raise HTTPException(503, f"the report was not published: {error!r}") from error
    return {"event_id": event_id}

"""What somebody who has never heard of Windlass may publish, in every codec: SERVERS TOPIC NAME.

tests/kafka/foreign.rs says what is to become of it; foreign/Producer.java publishes the same.
"""

import sys

from confluent_kafka import Producer

SERVERS, TOPIC, NAME = sys.argv[1:]


def json(name):
    return f'{{"name":"{name}"}}'.encode()


def event(name):
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", name.encode()),
        ("ce_source", b"/foreign"),
        ("ce_type", b"made"),
        ("content-type", b"application/json"),
    ]


def envelope(name):
    return f'{{"specversion":"1.0","id":"{name}","source":"/foreign","type":"made","data":{{"name":"{name}"}}}}'.encode()


STRUCTURED = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
ODD = [("fate", b"dead"), ("bytes", b"\xff\xfe\x00"), ("empty", b""), ("twice", b"1"), ("twice", b"2"), ("none", None)]


def alone(of, settings):
    producer = Producer(settings)
    send = lambda value, key=b"k", headers=(): producer.produce(TOPIC, value=value, key=key, headers=list(headers))
    send(json(f"{of}-plain"))
    send(json(f"{of}-unkeyed"), key=None)
    send(None, key=f"{of}-tombstone".encode())
    send(json(f"{of}-binary"), headers=event(f"{of}-binary"))
    send(envelope(f"{of}-structured"), headers=STRUCTURED)
    send(json(f"{of}-odd"), headers=ODD)
    send(f'{{"name":"{of}-torn"'.encode(), headers=[("content-type", b"application/json")])
    send(b"\xff\x00" + f"{of}-bytes".encode())
    send(f"{of}-nameless".encode(), headers=[("ce_specversion", b"1.0")])
    send(f"{of}-envelope".encode(), headers=STRUCTURED)
    assert producer.flush(60) == 0


def together(of, settings):
    producer = Producer({**settings, "transactional.id": f"{TOPIC}.{of}"})
    producer.init_transactions(60)
    for number, end in enumerate(["committed", "aborted", "committed", "aborted"]):
        producer.begin_transaction()
        for place in range(3):
            producer.produce(TOPIC, value=json(f"{of}-{end}-{number}-{place}"), key=b"k")
        # What is aborted lies in the log all the same.
        assert producer.flush(60) == 0
        if end == "committed":
            producer.commit_transaction(60)
        else:
            producer.abort_transaction(60)


for codec in ["none", "gzip", "snappy", "lz4", "zstd"]:
    settings = {"bootstrap.servers": SERVERS, "compression.type": codec, "linger.ms": 20}
    alone(f"{NAME}-{codec}", settings)
    together(f"{NAME}-{codec}", settings)

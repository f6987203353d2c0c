"""A job over HTTP: one POST an attempt. 2xx is done, 422 is a dead letter, 5xx and Retry-After are tried again.

    uvicorn handler:app --port 8001

With SMTP (HOST:PORT) it sends a mail for each report. GET /handled says what it was given.
"""

import os
import smtplib
from email.message import EmailMessage

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

SMTP = os.environ.get("SMTP")

app = FastAPI()
handled: dict[str, dict] = {}


class Report(BaseModel):  # Whatever does not fit is answered with 422: a dead letter, `permanent`.
    report_id: str
    patient_id: str
    timestamp: str


@app.post("/jobs/notify")
def notify(report: Report, request: Request):  # Not async: smtplib blocks, so FastAPI runs it on a thread.
    # The same at each attempt: an effect that must happen once is stored under it, here in a dictionary.
    event_id = request.headers["ce-id"]
    if event_id in handled:
        return {"event_id": event_id, "done_before": True}
    if report.patient_id == "P-BUSY" and int(request.headers["ce-attempt"]) < 2:
        raise HTTPException(503, "try again later", headers={"Retry-After": "1"})
    if SMTP:
        mail = EmailMessage()
        mail["From"] = "reports@laboratory.example"
        mail["To"] = f"{report.patient_id.lower()}@patients.example"
        mail["Subject"] = f"Your report {report.report_id} is ready"
        mail["Message-ID"] = f"<{event_id}@laboratory.example>"
        mail.set_content("Your doctor will discuss it with you.")
        host, port = SMTP.rsplit(":", 1)
        with smtplib.SMTP(host, int(port), timeout=10) as server:
            server.send_message(mail)
    handled[event_id] = {"report_id": report.report_id, "attempt": int(request.headers["ce-attempt"])}
    return {"event_id": event_id, "done_before": False}


@app.get("/handled")
def what_was_handled():
    return handled


@app.get("/health")
def health():
    return {"status": "ok"}

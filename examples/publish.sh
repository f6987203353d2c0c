#!/bin/sh
# Publishing from a shell: a line each. The worker need not run, but for the last one.
set -eu

# The command line; any broker.
windlass publish reports.finalized '{"report_id": "R-0001"}' --id report-R-0001 --key P-0001

# A line of a file is an event.
printf '%s\n' '{"report_id": "R-0002"}' '{"report_id": "R-0003"}' | windlass publish reports.finalized --lines -

# HTTP, on the admin port of a worker.
[ -z "${WORKER:-}" ] || curl -sS "$WORKER/api/v1/topics/reports.finalized" \
  -H 'content-type: application/json' -H 'Idempotency-Key: report-R-0004' -d '{"report_id": "R-0004"}'

# What is beside the broker already:
#   nats pub reports.finalized '{"report_id": "R-0005"}'
#   echo '{"report_id": "R-0006"}' | kcat -P -b localhost:9092 -t reports.finalized

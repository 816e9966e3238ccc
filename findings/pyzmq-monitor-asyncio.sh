#!/usr/bin/env bash
# pyzmq 27.3.0: to read one event of a socket monitor, a message of six bytes, its parser brings asyncio and ssl along,
# though nothing asynchronous is used: zmq.utils.monitor imports zmq.asyncio for the annotations of an overload.
# Source: zmq/utils/monitor.py. It costs a device's agent some MB and a tenth of its start.
# Our answer: contract/devit_contract/wire/sockets.py unpacks the event itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyzmq==27.3.0
found=$("$folder/venv/bin/python" - <<'PY'
import sys

import zmq

heavy = ("asyncio", "ssl")
print("zmq:", [name for name in heavy if name in sys.modules])
from zmq.utils.monitor import parse_monitor_message

print("zmq.utils.monitor:", [name for name in heavy if name in sys.modules])
PY
)
printf '%s\n' "$found"
diff <(printf '%s\n' "$found") - <<'EXPECTED'
zmq: []
zmq.utils.monitor: ['asyncio', 'ssl']
EXPECTED

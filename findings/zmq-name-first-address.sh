#!/usr/bin/env bash
# pyzmq 27.3.0 (libzmq 4.3.5): a socket with IPV6 set connects to the first address of a name only. A name with ::1 and
# 127.0.0.1, in that order, never reaches what listens on 127.0.0.1; a plain TCP client does, as it tries all of them.
# Source: libzmq, src/ip_resolver.cpp, ip_resolver_t::resolve_getaddrinfo: "Use the first result".
# Our answer: contract/devit_contract/wire/reach.py. Needs unshare, as root or with user namespaces.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyzmq==27.3.0
cat >"$folder/try.py" <<'PY'
import socket
import zmq

context = zmq.Context()
listening = context.socket(zmq.PULL)
listening.linger = 0
port = listening.bind_to_random_port("tcp://127.0.0.1")
families = [family.name for family, *_ in socket.getaddrinfo("two-addresses", port, type=socket.SOCK_STREAM)]
plain = socket.create_connection(("two-addresses", port), 5)
print("addresses:", *families)
print("plain TCP:", plain.getpeername()[0])
plain.close()
for ipv6 in (0, 1):
    sender = context.socket(zmq.PUSH)
    sender.linger, sender.ipv6, sender.immediate = 0, ipv6, 1
    sender.connect(f"tcp://two-addresses:{port}")
    print(f"libzmq, IPV6 {ipv6}:", "connected" if sender.poll(5000, zmq.POLLOUT) else "not connected in 5 s")
    sender.close()
listening.close()
context.term()
PY
printf '::1 two-addresses\n127.0.0.1 two-addresses\n' >"$folder/hosts"
options=(--mount)
[ "$(id -u)" = 0 ] || options+=(--map-root-user)
found=$(unshare "${options[@]}" sh -c "mount --bind $folder/hosts /etc/hosts && $folder/venv/bin/python $folder/try.py")
printf '%s\n' "$found"
diff <(printf '%s\n' "$found") - <<'EXPECTED'
addresses: AF_INET6 AF_INET
plain TCP: 127.0.0.1
libzmq, IPV6 0: connected
libzmq, IPV6 1: not connected in 5 s
EXPECTED

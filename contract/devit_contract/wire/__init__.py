"""What crosses the network: header, bodies, sockets, the client and its answers."""

"""Device, all day: its engine's features go out on the wire."""

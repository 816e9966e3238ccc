"""Device, at build time and to run: a bundle becomes an engine, an engine gives features."""

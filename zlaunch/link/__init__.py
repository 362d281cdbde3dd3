"""Level 3: the wire. The only room that imports zmq."""

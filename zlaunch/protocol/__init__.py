"""Level 2, pure: the messages, their frames, and the payload's envelope. No I/O, no pickle in a header."""

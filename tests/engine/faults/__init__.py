"""Jobs of real ranks that are killed, signalled and moved, and must end as if nothing had happened."""

"""Keys and values on the wire: frames of a prompt's KV from prefill to decode workers."""

"""The decode worker: requests in over one stream per gateway, tokens out, one message per engine step."""

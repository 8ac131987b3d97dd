"""The damage done for real: processes killed, connections cut, flows and requests that misbehave."""

"""Room card: the API of an agent and of an operator, on a unix socket.

Lives here: the shapes that callers see (schema.py), routes, how state and kernel rows read, three clients: with the
standard library alone (quickclient.py, connection.py) and asynchronous (client.py).
Does not live here: what a request does (commands/, runtime/), nor printing (cli/).
May import: everything of controlplane below it; aiohttp in server.py, client.py and the routes only.
Start with: schema.py.
"""

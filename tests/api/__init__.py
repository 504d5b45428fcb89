"""The product from outside: a real server process, spoken to over real sockets."""

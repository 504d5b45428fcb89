"""Every request's way in: host names, origins of web pages, keys and scopes. What a route does lives elsewhere."""

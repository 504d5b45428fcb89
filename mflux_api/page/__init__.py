"""The page at ``/``, as browsers get it: HTML, CSS and JavaScript modules, one file a view; no Python but this."""

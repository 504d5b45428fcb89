"""Who may ask for what: keys, their scopes and their file, and the caller of a request. No HTTP lives here."""

"""The API of this project, ``/api/v1``: handlers, the JSON they answer with, and their part of ``/openapi.json``.

Other projects' APIs (A1111's ``/sdapi/v1``) have folders of their own beside this one.
"""

"""A1111's API, ``/sdapi/v1``, and all that its names mean here: fields, dialect, schemas, upscalers.

Only the infotext that PNG files carry is known elsewhere: ``mflux_api.images.infotext``.
"""

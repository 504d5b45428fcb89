"""Images as bytes: decoding what clients send, sizes, PNG and other formats, infotext.

Files on disk are in ``storage``, pixels that the model makes in ``engine``.
"""

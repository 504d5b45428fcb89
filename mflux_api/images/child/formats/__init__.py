"""Files of strangers before a decoder sees them: only what the first image's pixels need, and no more of it than usual.

Each module reads one container in plain Python, in time proportional to the file, and hands on a plain file of its
kind. What the parts mean is the decoder's business.
"""

"""Downloads from the model hub: the child that downloads, its protocol, and the folder where repositories lie.

Which jobs wait for a download is the downloader's business, in ``actors``.
"""

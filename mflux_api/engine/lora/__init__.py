"""Adapters (LoRA, LoKr): their files, and putting them on a transformer for a call.

Which names a request may use is decided in ``storage``.
"""

"""Running a FLUX.2 model: a pass from prompt to pixels, its three stages and the maths of each.

How weights get into memory is in ``weights``, how adapters work in ``lora``.
"""

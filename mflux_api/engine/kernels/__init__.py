"""The fast path: FLUX.2 in fewer and larger operations than mflux has, on CUDA, Metal and a CPU."""

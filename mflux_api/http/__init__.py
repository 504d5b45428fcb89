"""The REST API: one Quart app, the server that runs it, and the actor that supervises both.

What a job, a model or an image is lies elsewhere; this folder asks the gateway and never an actor.
"""

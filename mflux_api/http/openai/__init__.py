"""OpenAI's images API: ``/v1/models`` and ``/v1/images``, in the shapes that its SDKs read."""

# Pre-quantized models load faster
curl -X POST http://localhost:7861/sdapi/v1/txt2img \
  -H "Content-Type: application/json" \
  -d '{
    "prompt": "a cyberpunk street scene",
    "model": "flux2-klein-4b-mlx-4bit",
    "steps": 4
  }'

# 1. Generate image
curl -X POST http://localhost:7861/sdapi/v1/txt2img \
  -H "Content-Type: application/json" \
  -d '{
    "prompt": "sunset over mountains, vibrant colors",
    "model": "flux2-klein-4b",
    "steps": 4,
    "width": 1024,
    "height": 576
  }' | jq -r '.images[0]' | base64 -d > sunset.png

echo "Image saved to sunset.png"

import requests
import base64

prompts = [
    "a peaceful forest scene",
    "a bustling city street",
    "an alien landscape"
]

for i, prompt in enumerate(prompts):
    response = requests.post(
        "http://localhost:7861/sdapi/v1/txt2img",
        json={
            "prompt": prompt,
            "model": "flux2-klein-4b",
            "steps": 4,
            "seed": i * 100  # Different seed for each
        }
    )

    img_b64 = response.json()["images"][0]
    with open(f"batch_{i}.png", "wb") as f:
        f.write(base64.b64decode(img_b64))

    print(f"Generated: {prompt}")

import base64
import requests
import time

# Submit job
response = requests.post(
    "http://localhost:7861/api/v1/generate",
    json={
        "prompt": "abstract geometric patterns, colorful",
        "model": "flux2-klein-4b",
        "steps": 8,
        "num_images": 4
    }
)
job_id = response.json()["job_id"]
print(f"Job submitted: {job_id}")

# Poll for completion
while True:
    status = requests.get(f"http://localhost:7861/api/v1/jobs/{job_id}").json()

    if status["status"] == "completed":
        print("Generation complete!")
        for i, img_b64 in enumerate(status["result"]["images"]):
            with open(f"output_{i}.png", "wb") as f:
                f.write(base64.b64decode(img_b64))
        break
    elif status["status"] == "failed":
        print(f"Generation failed: {status.get('error')}")
        break

    print(f"Progress: {status['progress'] * 100:.1f}%")
    time.sleep(2)

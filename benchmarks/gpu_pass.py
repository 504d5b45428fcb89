"""What the fast path of a GPU saves on each part of an image, with random weights in the shapes of FLUX.2 Klein 4B.

Everything is measured in one run, mflux's own way beside ours; where torch and diffusers are installed, theirs too,
eager and compiled. Figures are medians of synchronized calls; a step that is queued behind others is the one of a run,
which puts the next step together while one is computed.

Run: ``python -m benchmarks.gpu_pass`` on a machine with a GPU
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from benchmarks.report import Report, Table, options_parser

if TYPE_CHECKING:
    import mlx.core as mx

SIDES = (512, 1024)
PROMPT_TOKENS = 512
_CALLS, _WARM = 15, 3


def milliseconds(compute: "Callable[[], mx.array]") -> float:
    """Return the median of one call after the other."""
    import mlx.core as mx

    seconds = []
    for number in range(_CALLS + _WARM):
        begun = time.perf_counter()
        mx.eval(compute())
        mx.synchronize()
        if number >= _WARM:
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) * 1000


def queued_milliseconds(compute: "Callable[[], mx.array]") -> float:
    """Return the mean of calls that are queued together."""
    import mlx.core as mx

    begun = time.perf_counter()
    for _ in range(_CALLS):
        mx.async_eval(compute())
    mx.synchronize()
    return (time.perf_counter() - begun) / _CALLS * 1000


def first_seconds(compute: "Callable[[], mx.array]") -> float:
    """Return how long the first call takes, with what it compiles."""
    import mlx.core as mx

    begun = time.perf_counter()
    mx.eval(compute())
    return time.perf_counter() - begun


def inputs(side: int, batch: int = 1) -> "tuple[mx.array, ...]":
    """Return latents, position ids, an embedded prompt and its ids."""
    import mlx.core as mx
    from mflux.models.flux2.model.flux2_text_encoder.prompt_encoder import Flux2PromptEncoder

    from mflux_api.engine.sampling.latents import draw_noise

    noise = draw_noise(range(batch), side, side)
    embeddings = mx.random.normal((batch, PROMPT_TOKENS, 7680)).astype(mx.bfloat16)
    arrays = (noise.latents.astype(mx.bfloat16), noise.ids, embeddings)
    text_ids = Flux2PromptEncoder.prepare_text_ids(embeddings[:1])
    mx.eval(*arrays, text_ids)
    return (*arrays, text_ids)


class Ways:
    """A transformer as mflux computes it and as we do."""

    def __init__(self, transformer: Any) -> None:
        import mlx.core as mx

        from mflux_api.engine.kernels import cuda_dequantize
        from mflux_api.engine.kernels.fused_transformer import FusedTransformer
        from mflux_api.engine.kernels.joint_projections import JointProjections

        def stock(latents: Any, ids: Any, embeddings: Any, text_ids: Any, timestep: Any) -> Any:
            return transformer(
                hidden_states=latents,
                encoder_hidden_states=embeddings,
                timestep=timestep,
                img_ids=ids,
                txt_ids=text_ids,
            )

        self.timestep = mx.array(500.0, dtype=mx.bfloat16)
        self.stock: Any = mx.compile(stock)
        cuda = not mx.metal.is_available()
        if cuda:
            cuda_dequantize.speed_up(transformer)
        projections = JointProjections(transformer)
        self.fused: Any = FusedTransformer(lambda: transformer, lambda: projections, cuda=cuda, compiled=True)

    def measure(self, side: int, batch: int = 1, *, stock: bool = True) -> dict[str, Any]:
        """Return the figures of a step."""
        import mlx.core as mx

        arrays: Any = inputs(side, batch)

        def fused() -> mx.array:
            velocity: mx.array = self.fused(*arrays, self.timestep)
            return velocity

        found: dict[str, Any] = {"side": side, "batch": batch, "fused_first_s": first_seconds(fused)}
        found |= {"fused_ms": milliseconds(fused), "fused_queued_ms": queued_milliseconds(fused)}
        if stock:

            def theirs() -> mx.array:
                velocity: mx.array = self.stock(*arrays, self.timestep)
                return velocity

            found |= {"stock_first_s": first_seconds(theirs), "stock_ms": milliseconds(theirs)}
            one, other = (each.astype(mx.float32) for each in (fused(), theirs()))
            apart = mx.abs(one - other)
            found |= {"largest_difference": apart.max().item(), "mean_difference": apart.mean().item()}
            found["deviation"] = other.std().item()
        return found


def build() -> Any:
    """Return a transformer with random weights."""
    import mlx.core as mx
    from mlx.utils import tree_map

    from benchmarks.klein_4b import shape
    from mflux_api.engine.checkpoint import JsonConfig
    from mflux_api.engine.demo import layout
    from mflux_api.engine.weights.building import build_transformer

    dimensions = shape()
    config = JsonConfig("transformer", layout.transformer_config(dimensions))
    text = JsonConfig("text_encoder", layout.text_encoder_config(dimensions, "bfloat16"))
    transformer: Any = build_transformer(config, text, dimensions.text_out_layers)
    transformer.update(tree_map(lambda array: array.astype(mx.bfloat16), transformer.parameters()))
    mx.eval(transformer.parameters())
    return transformer


def measure_steps() -> list[dict[str, Any]]:
    """Return the figures of steps, in bfloat16 and quantized."""
    import mlx.core as mx

    from mflux_api.engine.weights.quantization import quantize_layers, replace_quantized_layers

    plain = build()
    ways = Ways(plain)
    rows = [{"bits": 16} | ways.measure(side, batch) for side, batch in ((512, 1), (1024, 1), (512, 4))]
    del ways
    for bits in (8, 4):
        quantized = build()
        quantize_layers(quantized, bits)
        replace_quantized_layers(quantized)
        mx.eval(quantized.parameters())
        rows.append({"bits": bits} | Ways(quantized).measure(512, stock=False))
        del quantized
        mx.clear_cache()
    return rows


def measure_decoding() -> list[dict[str, Any]]:
    """Return the figures of the VAE's decoder, and how far each way is from float32."""
    import mlx.core as mx
    from mflux.models.common.config.model_config import ModelConfig
    from mlx.utils import tree_map

    from benchmarks.klein_4b import shape
    from mflux_api.engine.checkpoint import JsonConfig
    from mflux_api.engine.demo import layout
    from mflux_api.engine.sampling.decoding import decode_packed
    from mflux_api.engine.weights.building import build_vae

    vae: Any = build_vae(JsonConfig("vae", layout.vae_config(shape())))
    vae.update(tree_map(lambda array: array + 0.05 * mx.random.normal(array.shape), vae.parameters()))
    rows = []
    for side in SIDES:
        packed = mx.random.normal((1, 128, side // 16, side // 16))
        ModelConfig.precision = mx.float32
        vae.update(tree_map(lambda array: array.astype(mx.bfloat16).astype(mx.float32), vae.parameters()))
        packed = packed.astype(mx.bfloat16).astype(mx.float32)
        exact = decode_packed(vae, packed, "legacy", lambda: None)
        mx.eval(exact)
        ModelConfig.precision = mx.bfloat16
        vae.update(tree_map(lambda array: array.astype(mx.bfloat16), vae.parameters()))
        packed = packed.astype(mx.bfloat16)
        row: dict[str, Any] = {"side": side}
        for mode in ("legacy", "kernels"):

            def decode(mode: Any = mode, packed: mx.array = packed) -> mx.array:
                return decode_packed(vae, packed, mode, lambda: None)

            before = mx.get_active_memory()
            mx.reset_peak_memory()
            row[f"{mode}_first_s"] = first_seconds(decode)
            row[f"{mode}_peak_gb"] = (mx.get_peak_memory() - before) / 1e9
            row[f"{mode}_ms"] = milliseconds(decode)
            apart = mx.abs(decode().astype(mx.float32) - exact) * 127.5
            row[f"{mode}_levels_from_float32"] = {"mean": apart.mean().item(), "largest": apart.max().item()}
        rows.append(row)
    return rows


def measure_torch() -> dict[str, Any] | None:
    """Return diffusers' figures, out of a process of its own; ``None`` where it is not installed."""
    done = subprocess.run([sys.executable, "-c", _TORCH], stdout=subprocess.PIPE, text=True, check=False)
    found: dict[str, Any] | None = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    return found


_TORCH = """
import json, time, torch
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
model = Flux2Transformer2DModel(
    patch_size=1, in_channels=128, num_layers=5, num_single_layers=20, attention_head_dim=128, num_attention_heads=24,
    joint_attention_dim=7680, guidance_embeds=False,
).to("cuda", torch.bfloat16).eval()
model.fuse_qkv_projections()
found = {"torch": torch.__version__}
for name, call in (("eager", model), ("compiled", torch.compile(model))):
    for side in (512, 1024):
        count = (side // 16) ** 2
        draw = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
        places = torch.zeros(count, 4, device="cuda")
        places[:, 1] = torch.arange(count, device="cuda") // (side // 16)
        places[:, 2] = torch.arange(count, device="cuda") % (side // 16)
        words = torch.zeros(512, 4, device="cuda")
        words[:, 3] = torch.arange(512, device="cuda")
        arguments = dict(
            hidden_states=draw(1, count, 128), encoder_hidden_states=draw(1, 512, 7680), img_ids=places, txt_ids=words,
            timestep=torch.tensor([0.5], device="cuda", dtype=torch.bfloat16), guidance=None, return_dict=False,
        )
        seconds = []
        with torch.no_grad():
            for number in range(18):
                begun = time.perf_counter()
                call(**arguments)
                torch.cuda.synchronize()
                seconds.append(time.perf_counter() - begun)
        found[f"{name}_{side}_ms"] = sorted(seconds[3:])[7] * 1000
        found[f"{name}_{side}_first_s"] = sum(seconds[:3])
print(json.dumps(found))
"""


def tables(found: dict[str, Any]) -> list[Table]:
    """Return the figures as tables."""
    steps, decoding = [], []
    for row in found["steps"]:
        name = f"{row['side']}², {row['bits']} bits, batch {row['batch']}"
        stock = f"{row['stock_ms']:.1f} ms" if "stock_ms" in row else ""
        apart = [f"{row[key]:.4f}" for key in ("largest_difference", "mean_difference", "deviation") if key in row]
        steps.append((name, stock, f"{row['fused_ms']:.1f} ms", f"{row['fused_queued_ms']:.1f} ms", ", ".join(apart)))
    for row in found["decoding"]:
        memory = f"{row['legacy_peak_gb']:.1f}, {row['kernels_peak_gb']:.1f} GB"
        levels = [row[f"{mode}_levels_from_float32"] for mode in ("legacy", "kernels")]
        far = ", ".join(f"{each['mean']:.2f} (most {each['largest']:.1f})" for each in levels)
        times = (f"{row[f'{mode}_ms']:.1f} ms" for mode in ("legacy", "kernels"))
        decoding.append((f"{row['side']}²", *times, memory, far))
    apart_head = "difference: largest, mean, of a deviation of"
    made = [
        Table(("step", "mflux, compiled", "fast path", "queued", apart_head), steps),
        Table(("decoding", "mflux", "fast path", "memory", "levels from float32: mflux, fast path"), decoding),
    ]
    if (peer := found["torch"]) is not None:
        rows = [
            (f"{side}²", *(f"{peer[f'{way}_{side}_ms']:.1f} ms" for way in ("eager", "compiled"))) for side in SIDES
        ]
        made.append(Table(("diffusers' step", "eager", "compiled"), rows))
    return made


def main() -> None:
    """Print the tables."""
    options = options_parser(__doc__).parse_args()
    report = Report("gpu_pass", options)
    import mlx.core as mx

    from mflux_api.engine.device import select

    device = select("gpu")
    found: dict[str, Any] = {"device": device.name, "mlx": version("mlx"), "steps": measure_steps()}
    mx.clear_cache()
    found["decoding"] = measure_decoding()
    mx.clear_cache()
    found["torch"] = measure_torch()
    report.publish(found, *tables(found), notes=[f"{device.name}, MLX {version('mlx')}"])


if __name__ == "__main__":
    main()

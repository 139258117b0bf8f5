"""`seed-jax serve`: an OpenAI-compatible server."""

import argparse
import importlib
import os
from pathlib import Path

from seed_jax.cli.generation_options import add_model_options
from seed_jax.errors import UserError

API_KEY = "SEED_JAX_API_KEY"
DESCRIPTION = (
    "Serve a model behind OpenAI's API: chat completions, completions, responses, images, embeddings. Without an API "
    "key, listen on this machine only. SIGTERM finishes running answers."
)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command and its arguments."""
    parser = subparsers.add_parser("serve", help="serve a model behind OpenAI's API", description=DESCRIPTION)
    add_model_options(parser)
    parser.add_argument(
        "--decoder", type=Path, metavar="DIR", help="image decoder, to draw images (default: the one the model names)"
    )
    parser.add_argument("--no-decoder", action="store_true", help="leave images as codes")
    parser.add_argument(
        "--clip", type=Path, metavar="DIR", help="folder of a Hugging Face CLIP ViT-H, to embed texts in /v1/embeddings"
    )
    parser.add_argument("--name", metavar="NAME", help="name of the model in the API (default: the directory's)")
    parser.add_argument("--ui", action="store_true", help="also serve a chat page at /ui")
    network = parser.add_argument_group("network")
    network.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    network.add_argument("--port", type=int, default=8000, metavar="N", help="port; 0: a free one (default: 8000)")
    network.add_argument("--api-key", metavar="KEY", help=f"key of the clients (default: the environment's {API_KEY})")
    network.add_argument(
        "--open-metrics", action="store_true", help="answer /metrics without a key, as Prometheus asks by default"
    )
    network.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL", help="web pages that may call the server (CORS)"
    )
    network.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="Host headers besides those of this machine"
    )
    network.add_argument("--public-url", metavar="URL", help="address of the server as clients see it")
    images = parser.add_argument_group("images")
    images.add_argument(
        "--allow-images-from",
        action="append",
        default=[],
        metavar="HOST|DIR",
        help="host whose URLs, or directory whose files, requests may name (default: data URIs only)",
    )
    images.add_argument(
        "--allow-private-addresses",
        action="store_true",
        help="also fetch images from allowed hosts whose addresses are not public",
    )
    images.add_argument("--media-dir", type=Path, metavar="DIR", help="write drawn images as files, sent as URLs")
    images.add_argument("--media-expiry", type=float, default=3600, metavar="S", help="their age limit (default: 3600)")
    images.add_argument("--media-limit", default="1GiB", metavar="SIZE", help="their total size (default: 1GiB)")
    images.add_argument("--max-image-bytes", default="20MiB", metavar="SIZE", help="encoded size (default: 20MiB)")
    images.add_argument("--max-image-pixels", type=int, default=32_000_000, metavar="N", help="(default: 32,000,000)")
    images.add_argument("--max-images", type=int, default=32, metavar="N", help="per request (default: 32)")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--slots", type=int, default=8, metavar="N", help="answers decoded together (default: 8)")
    engine.add_argument(
        "--tensor-parallel", type=int, default=1, metavar="N", help="devices that share the language model (default: 1)"
    )
    engine.add_argument("--max-model-len", type=int, metavar="N", help="context length (default: the model's)")
    engine.add_argument("--max-queue", type=int, default=256, metavar="N", help="waiting answers (default: 256)")
    engine.add_argument("--prefix-cache-blocks", type=int, metavar="N", help="blocks of 64 tokens; 0: none")
    batches = (1, 2, 4, 8)
    engine.add_argument(
        "--encode-batch", type=int, default=8, choices=batches, help="images encoded together (default: 8)"
    )
    engine.add_argument("--draw-batch", type=int, default=4, choices=batches, help="images drawn together (default: 4)")
    engine.add_argument("--max-beams", type=int, default=4, metavar="N", help="largest beam search (default: 4)")
    limits = parser.add_argument_group("limits and defaults")
    limits.add_argument("--max-body", default="64MiB", metavar="SIZE", help="size of a request (default: 64MiB)")
    limits.add_argument("--max-choices", type=int, default=16, metavar="N", help="largest n (default: 16)")
    limits.add_argument("--request-timeout", type=float, default=600, metavar="S", help="of an answer (default: 600)")
    limits.add_argument("--send-timeout", type=float, default=60, metavar="S", help="of a slow reader (default: 60)")
    limits.add_argument(
        "--shutdown-timeout", type=float, default=30, metavar="S", help="for running answers; 0: none (default: 30)"
    )
    limits.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="default max_tokens (512)")
    limits.add_argument("--temperature", type=float, default=1.0, metavar="T", help="default temperature (1)")
    limits.add_argument("--top-p", type=float, default=0.5, metavar="P", help="default top_p (0.5, as the original)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Serve until a signal ends it."""
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port is {args.port}, expected 0 to 65535.")
    try:
        import fastapi
        import multipart
        import prometheus_client
        import uvicorn

        if args.ui:
            importlib.import_module("gradio")
    except ImportError as error:
        raise UserError(
            f"`seed-jax serve` needs {error.name}: pip install 'seed-jax[{'ui' if args.ui else 'serve'}]'."
        ) from error
    del fastapi, multipart, prometheus_client, uvicorn
    args.api_key = args.api_key or os.environ.get(API_KEY)
    # Imported late: `--help` and wrong arguments are answered without waiting for JAX.
    from seed_jax.cli import serve_api

    serve_api.run(args)

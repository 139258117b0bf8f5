"""Building the server of `seed-jax serve` from its options."""

import argparse
import logging

import jax
from jax.sharding import Mesh

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import LANGUAGE_MODELS
from seed_jax.cli.generation_loading import load_config
from seed_jax.errors import UserError
from seed_jax.inference import memory_plan
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.seed_llama import LoadConfig
from seed_jax.models.language_models import read_sizes
from seed_jax.serving.engine.config import EngineConfig
from seed_jax.serving.openai_api.app import create_app
from seed_jax.serving.openai_api.context import ApiConfig, ApiContext
from seed_jax.serving.openai_api.image_output import MediaStore
from seed_jax.serving.openai_api.media import MediaLoader, MediaRules
from seed_jax.serving.openai_api.middleware import HEALTH, LOOPBACK_HOSTS, Gate, loopback_hosts
from seed_jax.serving.openai_api.run import ApiServer, serve
from seed_jax.serving.service import SeedService, ServiceConfig
from seed_jax.sharding import make_mesh


def run(args: argparse.Namespace) -> None:
    """Check the options, load the models, compile, and serve."""
    key = args.api_key or None
    if key is None and args.host not in LOOPBACK_HOSTS:
        raise UserError(
            f"--host {args.host} can be reached from other machines, but there is no API key: set "
            "SEED_JAX_API_KEY or --api-key, or listen on 127.0.0.1."
        )
    # Everything that can be wrong is found before gigabytes of weights are loaded.
    media = media_rules(args)
    gate = build_gate(args, key)
    defaults = SamplingParams(max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p)
    engine = EngineConfig(
        num_slots=args.slots,
        max_model_len=args.max_model_len,
        max_queued_requests=args.max_queue,
        prefix_cache_blocks=args.prefix_cache_blocks,
        max_beams=args.max_beams,
    )
    sizes = ServiceConfig(engine, max_encode_batch=args.encode_batch, max_draw_batch=args.draw_batch)
    store = None
    if args.media_dir is not None:
        limit = memory_plan.parse_size(args.media_limit)
        store = MediaStore(args.media_dir, expiry_s=args.media_expiry, max_bytes=limit)
    config = load_config(args, use_decoder=not args.no_decoder)
    clip = _open_clip(args)
    check_memory(args, config, engine)
    logging.info("loading %s ...", config.model)
    service = SeedService.load(config, sizes, mesh=_mesh(args.tensor_parallel))
    name = args.name or args.model.resolve().name
    context = ApiContext(
        service,
        ApiConfig(
            model_name=name,
            defaults=defaults,
            max_choices=args.max_choices,
            request_timeout_s=args.request_timeout,
            send_timeout_s=args.send_timeout,
            public_url=args.public_url,
        ),
        MediaLoader(media),
        store,
        clip,
    )
    service.start()
    app = create_app(context, gate, is_draining=lambda: service.is_closing)
    if args.ui:
        from seed_jax.serving.web.mount import mount_page
        from seed_jax.serving.web.page import PageConfig

        app = mount_page(app, service, PageConfig(name, defaults), api_key=key)
    server = ApiServer(app, service, host=args.host, port=args.port, shutdown_timeout_s=args.shutdown_timeout)
    serve(server, service)


def check_memory(args: argparse.Namespace, config: LoadConfig, engine: EngineConfig) -> None:
    """Report the memory plan on request or if it is tight, and refuse to load what does not fit on the first device."""
    folder, described = model_dir.read_config(config.model, LANGUAGE_MODELS)
    where = str(folder / model_dir.CONFIG)
    length = engine.max_model_len or read_sizes(described["kind"], described.get("sizes", {}), where).max_length
    pool = engine.pool_size(length)
    plan = memory_plan.plan_directories(config, pool, num_images=args.encode_batch, num_drawn=args.draw_batch)
    plan.report(f"{pool.slots} slots of {pool.length} tokens", args.memory, show=args.memory_plan)
    if args.tensor_parallel == 1:  # shards of the language model are not planned
        plan.check(memory_plan.available_memory(args.memory))


def _mesh(tensor_parallel: int) -> Mesh | None:
    """Return a mesh whose devices share the language model; None for one device."""
    devices = jax.local_devices()
    if not 1 <= tensor_parallel <= len(devices):
        raise UserError(f"--tensor-parallel is {tensor_parallel}, expected 1 to {len(devices)}, the devices here.")
    return None if tensor_parallel == 1 else make_mesh({"tensor": tensor_parallel}, devices[:tensor_parallel])


def media_rules(args: argparse.Namespace) -> MediaRules:
    """Return the rules of images in requests."""
    return MediaRules.from_sources(
        args.allow_images_from,
        allow_private_addresses=args.allow_private_addresses,
        max_bytes=memory_plan.parse_size(args.max_image_bytes),
        max_pixels=args.max_image_pixels,
        max_images=args.max_images,
    )


def build_gate(args: argparse.Namespace, key: str | None) -> Gate:
    """Return who may send what."""
    return Gate(
        api_key=key,
        open_paths=(
            HEALTH,
            "/media/",
            *(["/metrics"] if args.open_metrics else []),
            *(["/ui", "/ui/"] if args.ui else []),  # the page asks for the key itself
        ),
        allowed_hosts=loopback_hosts(args.host, args.allow_host),
        allowed_origins=tuple(args.allow_origin),
        max_body_bytes=memory_plan.parse_size(args.max_body),
    )


def _open_clip(args: argparse.Namespace):
    """Open CLIP's text encoder, if one is given."""
    if args.clip is None:
        return None
    from seed_jax.evaluation.clip import ClipModel

    clip = ClipModel(args.clip)
    clip.embed_texts(["a"])  # a missing file is reported now
    return clip

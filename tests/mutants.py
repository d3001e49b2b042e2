"""Faults to plant, for ``mutate.py``: where, what stands there, what to put in its place. Each text stands there exactly once."""

from __future__ import annotations

from dataclasses import dataclass

_SCHEDULER = "framework/engine/scheduler.py"
_SPECULATION = "framework/engine/speculation.py"
_DEPTH = "framework/speculation/depth.py"
_REQUEST = "framework/engine/request.py"
_ENGINE = "framework/engine/engine.py"
_INPUTS = "framework/engine/inputs.py"
_MANAGER = "framework/engine/kv_cache/manager.py"
_SNAPSHOTS = "framework/engine/kv_cache/snapshots.py"
_POOL = "framework/engine/kv_cache/pool.py"
_PREFIX = "framework/engine/kv_cache/prefix.py"
_RUNNER = "framework/worker/runner.py"
_POOLING_RULES = "framework/engine/pooling.py"
_POOLED_STATES = "framework/worker/pooling/states.py"
_POOLING_RUNNER = "framework/worker/pooling/runner.py"
_POOLING_HEADS = "framework/models/pooling/heads.py"
_POOLING_LOAD = "framework/models/pooling/load.py"
_POOLING_READ = "framework/models/pooling/read.py"
_POOLING_SETTINGS = "framework/models/pooling/settings.py"
_POOLING_FILES = "framework/models/pooling/sentence_transformers.py"
_TOWER_EXECUTOR = "framework/worker/pooling/towers.py"
_IMAGES = "framework/engine/images.py"
_CHAT = "framework/engine/chat.py"
_ENCODER_CACHE = "framework/multimodal/encoder_cache.py"
_ITEMS = "framework/multimodal/items.py"
_IMAGE_PROMPTS = "framework/multimodal/processor.py"
_IMAGE_PLACES = "framework/multimodal/places.py"
_IMAGE_MIRROR = "framework/executor/mirror.py"
_SIZED_FILE = "framework/multimodal/sized.py"
_TOWERS_FILE = "framework/executor/towers.py"
_ENCODER_COST = "framework/executor/encoders.py"
_COST_MODEL = "framework/executor/cost_model.py"
_BODIES = "framework/study/load/bodies.py"
_PICTURES_FILE = "framework/study/workload/pictures.py"
_IMAGE_ROWS = "framework/worker/images.py"
_TOWER = "framework/models/tower.py"
_PHI3_TOWER = "framework/models/phi3_tower.py"
_TILES = "framework/multimodal/tiles.py"
_CROPS = "framework/multimodal/crops.py"
_SQUARES = "framework/multimodal/squares.py"
_COGVLM_TOWER = "framework/models/cogvlm_tower.py"
_VISUAL_EXPERTS = "framework/models/layers/visual_experts.py"
_VISION = "framework/models/vision.py"
_MODEL_LOAD = "framework/models/load.py"
_LAYER_BINDER = "framework/models/binding/layer.py"
_ANGLES = "framework/models/layers/angles.py"
_CATALOG = "framework/models/catalog.py"
_HUB = "framework/models/hub.py"
_TORCH_FILE = "framework/models/torch_file.py"
_SHAPE = "framework/executor/shape.py"
_IMAGE_PIPELINE = "framework/image_pipeline.py"
_IMAGE_GENERATION = "framework/models/image_generation/"
_LIBRARY_MODEL = "framework/models/transformers_model.py"
_ENCODERS = "framework/models/families/encoders.py"
_ROWS = "framework/worker/request_rows.py"
_SAMPLER = "framework/worker/sampler.py"
_SEAT_PARAMS = "framework/worker/seat_params.py"
_PENALTIES = "framework/worker/penalties.py"
_OUTPUT = "framework/engine/output_processor.py"
_DETOKENIZER = "framework/engine/detokenizer.py"
_ASYNC = "framework/async_engine.py"
_REPLICAS = "framework/replicas.py"
_FRONT = "framework/replicated_engine.py"
_BUILD = "framework/build.py"
_CLIENT = "framework/engine_client.py"
_PROCESS = "framework/engine_process.py"
_SAMPLE_C = "triton_kernels/impls/_shared/native_sample.c"
_RECORDING = "triton_kernels/impls/_shared/recording.py"
_GRAPHS = "framework/worker/decode_graphs.py"
_DEVICES = "framework/worker/devices.py"
_QUANTIZATION = "framework/models/quantization/"
_LINEAR = "framework/models/layers/linear.py"
_PLAN = "framework/plan.py"
_GPTQ_SEARCH = "framework/quantize/gptq.py"
_QUALITY = "framework/worker/teacher_forcing.py"
_TIMERS = "framework/executor/timers.py"
_SIMULATED = "framework/executor/simulated.py"
_SIMULATED_DEVICE = "framework/executor/simulated_device.py"
_CALIBRATION = "framework/executor/calibration.py"
_OPERATORS = "framework/executor/operators.py"
_OPERATOR_MODEL = "framework/executor/operator_model.py"
_PHYSICS = "framework/executor/physics.py"
_KRIGING = "framework/executor/kriging.py"
_ADAPTERS = "framework/engine/adapters.py"
_ADAPTER_SLOTS = "framework/engine/adapter_slots.py"
_PEFT = "framework/models/lora/peft.py"
_PEFT_CONFIG = "framework/models/lora/peft_config.py"
_SERVED_ADAPTERS = "framework/server/adapters.py"
_RANKS = "framework/models/ranks.py"
_PARTS = "framework/models/parts.py"
_BINDING = "framework/models/binding/"
_LORA_SLOTS = "framework/models/lora/slots.py"
_LORA_LAYERS = "framework/models/lora/layers.py"
_ADAPTER_HOST = "framework/worker/adapter_host.py"
_DISTRIBUTED = "framework/distributed/"
_RANK = "framework/worker/rank.py"
_GROUP = "triton_kernels/group.py"
_EXPERT_MAP = "framework/models/expert_map.py"
_EXPERT_BALANCER = "framework/models/expert_balancer.py"
_EXPERTS = "framework/models/layers/experts.py"
_LOCKSTEP = "framework/engine/lockstep.py"
_EXCHANGE = "triton_kernels/impls/moe_exchange/"
_FITTING = "framework/study/calibration/fitting.py"
_METRICS = "framework/study/metrics.py"
_STATISTICS = "framework/study/statistics.py"
_COMPARISON = "framework/study/comparison.py"
_RECORDS = "framework/study/records.py"
_ROUTER = "framework/engine/router.py"
_POLICIES = "framework/engine/policies.py"
_ENGINE_METRICS = "framework/engine/metrics.py"
_PROMETHEUS = "framework/metrics.py"
_BEAM_SEARCH = "framework/beam_search.py"
_ENGINE_ARGS = "framework/engine_args.py"
_SERVER = "framework/server/"
_PARSING = "framework/server/parsing/"
_COMPILER = "framework/structured/compiler.py"
_MATCHERS = "framework/structured/matchers.py"
_LLGUIDANCE = "framework/structured/backends/llguidance.py"
_WATCHED = "framework/structured/watched.py"
_LOAD = "framework/study/load/"
_ACCEPTANCE = "framework/worker/acceptance.py"
_BATCHES = "framework/worker/batches.py"
_ENCODING = "framework/engine/encoding.py"
_ENCODED_ROWS = "framework/worker/encoded_rows.py"
_ENCODER_RUNNER = "framework/worker/encoding.py"
_IMAGE_ENCODER = "framework/models/image_encoder.py"
_IMAGE_EMBEDDINGS = "framework/worker/image_embeddings.py"
_SPEECH = "framework/engine/speech.py"
_SOUND = "framework/engine/sound.py"
_LOCAL_EXECUTOR = "framework/worker/local_executor.py"
_DENOISING = "framework/engine/diffusion.py"
_RUN_AHEAD = "framework/engine/run_ahead.py"
_ATTENTION_ROWS = "framework/engine/attention_rows.py"
_DRY_RUN = "framework/models/dry_run.py"
_PLACED_LIBRARY = "framework/executor/library_model.py"
_LIBRARY_TESTS = "tests/framework/executor/test_library_models.py"
_PSEUDO = "framework/executor/pseudo.py"
_CANVAS_MIRROR = "framework/executor/canvas_mirror.py"
_CALLS = "framework/executor/calls.py"
_DIFFUSION = "framework/models/families/diffusion.py"
_REDRAWING = "framework/engine/redrawing.py"
_CANVASES = "framework/worker/canvases.py"
_DIFFUSION_GEMMA = "framework/models/diffusion_gemma.py"
_REDRAWS = "framework/models/redraws.py"
_HEAD = "framework/worker/drafting/head.py"
_CHAIN = "framework/worker/drafting/chain.py"
_CHAIN_GRAPHS = "framework/worker/drafting/chain_graphs.py"
_DRAFT_CACHE = "framework/worker/drafting/cache.py"
_STEP_ROWS = "framework/worker/step_rows.py"
_SCHEDULED = "framework/engine/scheduled.py"
_SUFFIX = "framework/speculation/suffix.py"
_DECODER = "framework/models/decoder.py"
_NATIVE = "framework/models/native.py"
_WEIGHTS = "framework/models/weights.py"
_TENSOR_FILES = "framework/models/tensor_files.py"
_ROPE = "framework/models/rope.py"
_GEMMA_FAMILY = "framework/models/families/gemma.py"
_FAMILIES = "framework/models/families/"
_CACHE_MEMORY = "framework/engine/kv_cache/memory.py"
_MIXERS = "framework/models/layers/mixers.py"
_ATTENTION = "framework/models/layers/attention.py"
_BINDER = "framework/models/binding/binder.py"
_VERIFY_DRAFT = "triton_kernels/impls/verify_draft/torch.py"
_REPEATING = "experiments/repeating.py"
_SERVE_JOB = "experiments/serve_job.py"
_SWEEP_FOLDER = "experiments/sweep_folder.py"


@dataclass(frozen=True)
class Mutant:
    """A fault: ``old`` in ``file`` becomes ``new``."""

    name: str
    file: str
    old: str
    new: str


_BLOCK_TESTS = [f"tests/framework/engine/test_{name}.py" for name in ("kv_cache", "snapshots", "kv_cache_properties")]
_SHARDED_TESTS = ["tests/distributed/test_sharded_models.py"]
_LOCKSTEP_TESTS = ["tests/distributed/test_lockstep.py"]
_EXPERT_TESTS = ["tests/models/test_expert_map.py", "tests/distributed/test_expert_maps.py", *_LOCKSTEP_TESTS]
_DISTRIBUTED_TESTS = [f"tests/distributed/test_{name}.py" for name in ("executor", "faults", "lockstep", "gloo_ranks", "llm")]
_ENGINE_TESTS = [f"tests/framework/engine/test_{name}.py" for name in ("scheduler", "snapshots", "engine")]
_TEXT_TESTS = [
    "tests/framework/engine/test_detokenizer.py",
    "tests/framework/engine/test_outputs.py",
    "tests/test_outputs_agree.py",
]
_TOKEN_TESTS = ["tests/test_sampling_oracle.py", "tests/test_against_transformers.py"]
_DRAFT_TESTS = [
    "tests/framework/worker/test_acceptance.py",
    "tests/framework/worker/test_drafting.py",
    "tests/framework/worker/test_draft_histories.py",
    "tests/test_exactness.py",
]
_RECORDING_TESTS = ["tests/triton_kernels/test_recording.py", "tests/framework/worker/test_decode_graphs.py"]
_QUANTIZATION_TESTS = ["tests/framework/models/quantization", "tests/framework/models/test_public_checkpoints.py"]
_CONFIG_TESTS = ["tests/models/test_configs.py"]
_CALIBRATION_TESTS = ["tests/framework/executor/test_calibration.py"]
_ENCODER_COST_TESTS = "tests/framework/executor/test_encoder_decoders.py"
_TOWER_COST_TESTS = "tests/framework/executor/test_towers.py"
_IMAGE_COST_TESTS = "tests/framework/executor/test_images.py"
_SIMULATED_TESTS = [
    "tests/framework/executor/test_library_models.py",
    _ENCODER_COST_TESTS,
    _IMAGE_COST_TESTS,
    "tests/framework/multimodal/test_without_device.py",
    *(f"tests/framework/executor/test_{name}.py" for name in ("parallel", "device_memory", "simulated", "speculation")),
    "tests/framework/study/test_replicas.py",
]
_COMPARISON_TESTS = ["tests/framework/study/test_comparison.py", "tests/framework/study/test_statistics.py"]
_METRICS_TESTS = [f"tests/framework/study/test_{name}.py" for name in ("metrics", "driver", "replicas")]
_SWEEP_TESTS = ["tests/experiments/test_sweeper.py"]
_RECORDER_TESTS = ["tests/framework/test_metrics.py", "tests/framework/executor/test_speculation.py"]
_SERVER_TESTS = {
    "sampling": ["sampling"],
    "generation": ["sampling"],
    "app": ["auth"],
    "auth": ["auth"],
    "sse": ["completions"],
    "serving": ["limits"],
    "beams": ["beams"],
    "completions": ["sampling", "completions"],
    "chat": ["sampling", "tool_calls", "chat"],
    "message": ["tool_calls", "chat"],
    "embeddings": ["pooling"],
    "image_urls": ["images"],
    "transcriptions": ["transcriptions"],
}
_LOAD_TESTS = ["tests/framework/study/load", "tests/framework/cli/test_bench_serve.py"]
_REPLICA_TESTS = ["tests/framework/test_replicas.py"]
_PROCESS_TESTS = ["tests/framework/test_engine_process.py", "tests/framework/test_async_engine.py", *_REPLICA_TESTS]
_POOLING_TESTS = ["tests/framework/models/pooling"]
_LORA_TESTS = ["tests/framework/worker/test_lora.py"]
_IMAGE_TESTS = ["tests/framework/multimodal"]
_PIPELINE_TESTS = ["tests/framework/models/image_generation", "tests/framework/test_image_pipeline.py"]
_INTERNVL_TESTS = ["tests/framework/multimodal/test_internvl_chat.py"]
_TIED_TESTS = "tests/framework/models/test_tied.py"
_COGVLM_TESTS = ["tests/framework/multimodal/test_cogvlm.py"]
_PHI3_TESTS = ["tests/framework/multimodal/test_phi3_v.py"]
_STATE_TESTS = ["tests/framework/worker/test_states.py"]
_DIFFUSION_TESTS = ["tests/models/test_block_diffusion.py"]
_CANVAS_TESTS = ["tests/framework/executor/test_canvases.py", "tests/framework/engine/test_canvases.py"]
_REDRAWING_TESTS = ["tests/models/test_diffusion_gemma.py"]
_LORA_EXACTNESS = "tests/test_lora_exactness.py"
_ENCODING_TESTS = "tests/models/test_encoder_decoders.py"
_MLLAMA_TESTS = "tests/framework/multimodal/test_mllama.py"
_FAILING_STEPS = "tests/framework/worker/test_failing_steps.py"
_SOUND_TESTS = "tests/framework/server/test_transcriptions.py"

TESTS: dict[str, list[str]] = {
    _POOLING_RULES: _POOLING_TESTS,
    _POOLED_STATES: _POOLING_TESTS,
    _POOLING_RUNNER: _POOLING_TESTS,
    _POOLING_HEADS: _POOLING_TESTS,
    _POOLING_LOAD: _POOLING_TESTS,
    _POOLING_READ: _POOLING_TESTS,
    **dict.fromkeys((_POOLING_SETTINGS, _POOLING_FILES, _TOWER_EXECUTOR), _POOLING_TESTS),
    _IMAGE_EMBEDDINGS: ["tests/framework/multimodal/test_serving.py", _MLLAMA_TESTS],
    _IMAGES: [*_POOLING_TESTS, "tests/framework/multimodal/test_serving.py"],
    _CHAT: ["tests/framework/multimodal/test_serving.py"],
    **dict.fromkeys((_ITEMS, _IMAGE_PROMPTS, _IMAGE_PLACES, _ANGLES), _IMAGE_TESTS),
    **{key: [*_IMAGE_TESTS, _FAILING_STEPS] for key in (_ENCODER_CACHE, _IMAGE_ROWS)},
    **dict.fromkeys(
        (_IMAGE_PIPELINE, *(f"{_IMAGE_GENERATION}{name}.py" for name in ("index", "attention", "load"))), _PIPELINE_TESTS
    ),
    **{key: [_MLLAMA_TESTS] for key in (_ENCODED_ROWS, _IMAGE_ENCODER)},
    _ENCODER_RUNNER: [_MLLAMA_TESTS, _FAILING_STEPS],
    **dict.fromkeys((_TOWER, _TILES), _INTERNVL_TESTS),
    **dict.fromkeys((_PHI3_TOWER, _CROPS), _PHI3_TESTS),
    **dict.fromkeys((_SQUARES, _COGVLM_TOWER, _VISUAL_EXPERTS), _COGVLM_TESTS),
    _MODEL_LOAD: [*_COGVLM_TESTS, _TIED_TESTS, "tests/framework/models/pooling/test_decoders.py"],
    _VISION: [*_COGVLM_TESTS, _MLLAMA_TESTS],
    _CATALOG: ["tests/framework/cli/test_models.py"],
    _HUB: ["tests/framework/models/test_loading.py", "tests/framework/models/pooling/test_sentence_transformers.py"],
    _TORCH_FILE: ["tests/framework/models/test_torch_files.py"],
    _SHAPE: ["tests/framework/executor/test_kv_blocks.py"],
    _LIBRARY_MODEL: ["tests/framework/models/test_transformers_backend.py"],
    _ENCODERS: _POOLING_TESTS,
    _SCHEDULER: [
        *_ENGINE_TESTS,
        *_TOKEN_TESTS,
        *_DRAFT_TESTS,
        _MLLAMA_TESTS,
        "tests/framework/multimodal/test_serving.py",
        "tests/framework/multimodal/test_without_device.py",
        _FAILING_STEPS,
    ],
    _DEPTH: ["tests/framework/speculation/test_depth.py"],
    _SPECULATION: ["tests/framework/engine/test_speculation.py", *_ENGINE_TESTS, *_DRAFT_TESTS],
    _SCHEDULED: _ENGINE_TESTS,
    _REQUEST: _ENGINE_TESTS,
    _ENGINE: [*_ENGINE_TESTS, *_TEXT_TESTS, *_TOKEN_TESTS, _ENCODING_TESTS, _MLLAMA_TESTS],
    _INPUTS: [*_ENGINE_TESTS, *_TEXT_TESTS, _ENCODING_TESTS],
    _MANAGER: [*_BLOCK_TESTS, *_ENGINE_TESTS, *_TOKEN_TESTS, *_DRAFT_TESTS],
    _SNAPSHOTS: _BLOCK_TESTS,
    _POOL: [*_BLOCK_TESTS, *_ENGINE_TESTS],
    _PREFIX: [*_BLOCK_TESTS, *_ENGINE_TESTS],
    _RUNNER: [*_STATE_TESTS, *_LORA_TESTS, *_TOKEN_TESTS, *_DRAFT_TESTS],
    _ROWS: [*_LORA_TESTS, *_TOKEN_TESTS, *_DRAFT_TESTS, "tests/distributed/test_tokens.py"],
    **{file: [*_TOKEN_TESTS, *_DRAFT_TESTS] for file in (_SAMPLER, _SEAT_PARAMS)},
    _PENALTIES: ["tests/framework/worker/test_bad_words.py", *_TOKEN_TESTS, *_DRAFT_TESTS, _ENCODING_TESTS, _MLLAMA_TESTS],
    _CACHE_MEMORY: ["tests/framework/engine/test_kv_cache.py", *_STATE_TESTS, *_CANVAS_TESTS],
    **dict.fromkeys((_RUN_AHEAD, _CANVAS_MIRROR), _CANVAS_TESTS),
    _PSEUDO: [*_CANVAS_TESTS, _LIBRARY_TESTS],
    _ATTENTION_ROWS: [*_REDRAWING_TESTS, *_CANVAS_TESTS, _MLLAMA_TESTS, _LIBRARY_TESTS],
    **{key: [_LIBRARY_TESTS] for key in (_DRY_RUN, _PLACED_LIBRARY)},
    _CALLS: [*_CANVAS_TESTS, _ENCODER_COST_TESTS, _IMAGE_COST_TESTS],
    _ENCODER_COST: [_TOWER_COST_TESTS, "tests/framework/executor/test_encoders.py", _ENCODER_COST_TESTS],
    _COST_MODEL: [_ENCODER_COST_TESTS, _IMAGE_COST_TESTS],
    **{key: [_SOUND_TESTS, _MLLAMA_TESTS] for key in (_SPEECH, _SOUND)},
    _ENCODING: [_IMAGE_COST_TESTS, _SOUND_TESTS, _MLLAMA_TESTS],
    _LOCAL_EXECUTOR: [_ENCODING_TESTS, _MLLAMA_TESTS],
    **dict.fromkeys((_DENOISING, _DIFFUSION), _DIFFUSION_TESTS),
    _MIXERS: ["tests/models/test_families.py::test_logits[None-qwen3-next]"],
    _ATTENTION: ["tests/models/test_families.py::test_logits[None-qwen3-next]", _MLLAMA_TESTS],
    _BATCHES: [*_STATE_TESTS, *_LORA_TESTS, *_TOKEN_TESTS, *_DRAFT_TESTS, _ENCODING_TESTS, _MLLAMA_TESTS],
    **dict.fromkeys((_REDRAWING, _CANVASES, _DIFFUSION_GEMMA, _REDRAWS), _REDRAWING_TESTS),
    **dict.fromkeys((_ACCEPTANCE, _HEAD, _CHAIN, _CHAIN_GRAPHS, _DRAFT_CACHE, _STEP_ROWS), _DRAFT_TESTS),
    _SUFFIX: ["tests/framework/speculation/test_suffix.py"],
    _DECODER: ["tests/framework/models/drafts/test_shipped.py", "tests/distributed/test_tokens.py", *_COGVLM_TESTS],
    **dict.fromkeys((_NATIVE, _ROPE, _GEMMA_FAMILY), _CONFIG_TESTS),
    **{f"{_FAMILIES}{name}.py": _CONFIG_TESTS for name in ("cohere", "deepseek", "falcon", "internlm")},
    f"{_FAMILIES}llama.py": [*_CONFIG_TESTS, "tests/framework/models/pooling/test_gritlm.py"],
    **{file: ["tests/framework/models/test_loading.py", _TIED_TESTS, *_SHARDED_TESTS] for file in (_WEIGHTS, _TENSOR_FILES)},
    **dict.fromkeys((_PARTS, *(f"{_QUANTIZATION}{name}.py" for name in ("shares", "scheme"))), _SHARDED_TESTS),
    **dict.fromkeys(
        (
            _RANK,
            *(
                f"{_DISTRIBUTED}{name}.py"
                for name in (
                    "executor",
                    "questions",
                    "rendezvous",
                    "worker",
                    "workers",
                    "kinds",
                    "launchers/threads",
                    "launchers/processes",
                    "handshake",
                )
            ),
        ),
        _DISTRIBUTED_TESTS,
    ),
    f"{_BINDING}checks.py": ["tests/distributed/test_tokens.py", *_LOCKSTEP_TESTS],
    _BINDER: [*_SHARDED_TESTS, _MLLAMA_TESTS],
    _LAYER_BINDER: ["tests/distributed/test_tokens.py", *_COGVLM_TESTS],
    f"{_BINDING}attention.py": [*_SHARDED_TESTS, "tests/models/test_families.py::test_logits[None-falcon-rw-twenty]"],
    **dict.fromkeys((_EXPERT_MAP, _EXPERT_BALANCER, _EXPERTS, f"{_BINDING}experts.py"), _EXPERT_TESTS),
    **dict.fromkeys((_LOCKSTEP, *(f"{_DISTRIBUTED}{name}.py" for name in ("lockstep", "experts"))), _LOCKSTEP_TESTS),
    f"{_DISTRIBUTED}messages.py": ["tests/distributed/test_executor.py", *_LOCKSTEP_TESTS],
    **{f"{_EXCHANGE}{name}.py": ["tests/triton_kernels/test_moe_exchange.py"] for name in ("torch", "deep_ep")},
    "framework/logs.py": ["tests/distributed/test_serving.py"],
    _GROUP: ["tests/triton_kernels/test_collectives.py"],
    _VERIFY_DRAFT: ["tests/triton_kernels/test_step_ops.py"],
    _OUTPUT: _TEXT_TESTS,
    _DETOKENIZER: _TEXT_TESTS,
    _ASYNC: _PROCESS_TESTS,
    _CLIENT: [*_PROCESS_TESTS, "tests/distributed/test_faults.py"],
    _PROCESS: [*_PROCESS_TESTS, "tests/framework/structured/test_processes.py", "tests/distributed/test_faults.py"],
    _SAMPLE_C: ["tests/triton_kernels/test_sampling_ops.py", "tests/triton_kernels/test_conformance.py"],
    _RECORDING: _RECORDING_TESTS,
    _GRAPHS: [*_STATE_TESTS, *_LORA_TESTS, *_RECORDING_TESTS, *_DRAFT_TESTS, _LORA_EXACTNESS, _ENCODING_TESTS, _MLLAMA_TESTS],
    **{file: [*_LORA_TESTS, "tests/framework/models/lora/test_logits.py"] for file in (_LORA_SLOTS, _LORA_LAYERS)},
    _ADAPTER_HOST: _LORA_TESTS,
    _DEVICES: _RECORDING_TESTS,
    **{
        f"{_QUANTIZATION}{name}.py": [*_QUANTIZATION_TESTS, *_SHARDED_TESTS]
        for name in ("packing", "canonical", "modules", "experts", "gptq", "compressed_tensors", "on_load", "kv_scales")
    },
    _LINEAR: [*_QUANTIZATION_TESTS, *_SHARDED_TESTS],
    _PLAN: ["tests/framework/models/quantization/test_on_load.py"],
    _GPTQ_SEARCH: ["tests/framework/quantize/test_gptq.py"],
    _QUALITY: ["tests/framework/worker/test_teacher_forcing.py"],
    _IMAGE_MIRROR: ["tests/framework/multimodal/test_without_device.py", _ENCODER_COST_TESTS, _IMAGE_COST_TESTS],
    _SIZED_FILE: ["tests/framework/multimodal/test_sized.py"],
    _TOWERS_FILE: [_TOWER_COST_TESTS],
    _BODIES: ["tests/framework/server/test_images.py"],
    _PICTURES_FILE: ["tests/framework/study/test_pictures.py", "tests/experiments/test_image_workloads.py"],
    _SERVE_JOB: ["tests/experiments/test_simulated_serving.py"],
    **dict.fromkeys((_TIMERS, _SIMULATED, _SIMULATED_DEVICE, _RANKS), _SIMULATED_TESTS),
    **dict.fromkeys((_CALIBRATION, _OPERATORS, _OPERATOR_MODEL, _PHYSICS, _KRIGING), _CALIBRATION_TESTS),
    _FITTING: ["tests/framework/study/test_calibration_fits.py"],
    **dict.fromkeys((_METRICS, _RECORDS), _METRICS_TESTS),
    **dict.fromkeys((_STATISTICS, _COMPARISON), _COMPARISON_TESTS),
    _ROUTER: ["tests/framework/engine/test_router.py"],
    _REPLICAS: _REPLICA_TESTS,
    _BUILD: [*_REPLICA_TESTS, *_CANVAS_TESTS],
    _FRONT: [*_REPLICA_TESTS, "tests/framework/test_data_parallel.py"],
    _POLICIES: ["tests/framework/engine/test_policies.py"],
    **dict.fromkeys((_ENGINE_METRICS, _PROMETHEUS), _RECORDER_TESTS),
    _BEAM_SEARCH: ["tests/framework/test_beam_search.py"],
    _ENGINE_ARGS: ["tests/framework/test_engine_args.py"],
    **{
        f"{_SERVER}{file}.py": [f"tests/framework/server/test_{name}.py" for name in names] for file, names in _SERVER_TESTS.items()
    },
    **{f"{_PARSING}{name}.py": ["tests/framework/server/parsing"] for name in ("message_parser", "source", "qwen3_coder")},
    _COMPILER: ["tests/framework/structured/test_compiler.py"],
    _WATCHED: ["tests/framework/structured/test_watched.py"],
    _LLGUIDANCE: ["tests/framework/structured/test_backends.py"],
    **{key: ["tests/framework/engine/test_adapters.py"] for key in (_ADAPTERS, _ADAPTER_SLOTS)},
    **{key: ["tests/framework/models/lora/test_peft.py"] for key in (_PEFT, _PEFT_CONFIG)},
    _SERVED_ADAPTERS: ["tests/framework/server/test_adapters.py"],
    _MATCHERS: [*(f"tests/framework/structured/test_{name}.py" for name in ("structured_output", "drafts")), _LORA_EXACTNESS],
    **{f"{_LOAD}{name}.py": _LOAD_TESTS for name in ("driver", "metrics", "run", "table")},
    **dict.fromkeys((_REPEATING, _SWEEP_FOLDER), _SWEEP_TESTS),
}
"""The tests that are to notice a fault in a file, quick ones first."""

MUTANTS = [
    # Who computes what.
    Mutant("decodes cost no budget", _SCHEDULER, "decodes.append(request)", "decodes.append(request); budget += 1"),
    Mutant("the first in order is preempted", _SCHEDULER, "victim = self.running.pop()", "victim = self.running.pop(0)"),
    Mutant(
        "requests are admitted in a step that preempts",
        _SCHEDULER,
        "if num_preemptions == self.counters.num_preemptions:",
        "if True:",
    ),
    Mutant("one token too many", _REQUEST, "length >= self.max_total else", "length > self.max_total else"),
    Mutant(
        "tokens sampled after the end are delivered",
        _SCHEDULER,
        "if request.status == Status.FINISHED:\n            return False",
        "if request.status == Status.FINISHED:\n            return True",
    ),
    Mutant(
        "a stop token does not say which it was",
        _SCHEDULER,
        "self.finish(request, reason, token if token in (request.params.stop_token_ids or ()) else None)",
        "self.finish(request, reason)",
    ),
    Mutant("a seat is given twice", _SCHEDULER, "request.seat = self._free_seats.pop()", "request.seat = self._free_seats[-1]"),
    Mutant("a request resumes before its steps in flight are done", _SCHEDULER, "request.num_stale_steps = sum(", "_ = sum("),
    Mutant("a fork from a leader that was preempted", _SCHEDULER, " and not leader.num_preemptions:", ":"),
    Mutant("chunks of any size", _SCHEDULER, "start, min(missing, budget, self._max_chunk))\n", "start, min(missing, budget))\n"),
    Mutant(
        "prompt logprobs of a chunk start at its end",
        _SCHEDULER,
        "(request, chunk.end - chunk.num_tokens, ",
        "(request, chunk.end, ",
    ),
    # The engine.
    Mutant("parallel completions have one seed", _INPUTS, "own.seed = params.seed + index", "own.seed = params.seed"),
    Mutant("stop strings do not end the request", _ENGINE, 'self.scheduler.finish(request, "stop", request.stop_reason)', "pass"),
    # Blocks.
    Mutant("a prefix hit of the whole prompt", _MANAGER, "limit = (request.num_tokens - 1) //", "limit = request.num_tokens //"),
    Mutant("blocks of a prefix hit are not referenced", _MANAGER, "        self.pool.share(hit.shared)\n", ""),
    Mutant("forks do not reference what they share", _MANAGER, "            self.pool.share(shared[group][:num_full])\n", ""),
    Mutant(
        "the partial block of a fork is not copied", _MANAGER, "copies.append((group, shared[group][num_full], own[0]))", "pass"
    ),
    Mutant("blocks leave the window one token early", _MANAGER, "num_computed - window + 1)", "num_computed - window + 2)"),
    Mutant(
        "blocks are found before they are full",
        _MANAGER,
        "num_full = num_computed // self.block_size\n",
        "num_full = self._ceil(num_computed)\n",
    ),
    Mutant("a window's hit ends one block short", _MANAGER, "if found == wanted:", "if found == wanted - 1:"),
    Mutant(
        "blocks of a chunk are reserved for no more than it",
        _MANAGER,
        "needed = max(num_reserved - len(shared), num_new",
        "needed = max(0, num_new",
    ),
    Mutant("an evicted block can still be found", _POOL, "                self._forget(block)\n", ""),
    Mutant("the latest used is evicted first", _POOL, "popitem(last=False)", "popitem(last=True)"),
    Mutant(
        "a block is free while another request holds it",
        _POOL,
        "                if counts[block] == 0:\n                    if block in",
        "                if True:\n                    if block in",
    ),
    Mutant("the same content is remembered twice", _POOL, " and key not in self._block_of[group]:", ":"),
    Mutant("the hash of a block forgets those before", _PREFIX, "digest = blake2b(parent, ", 'digest = blake2b(b"", '),
    Mutant("the hash of a block forgets the salt", _PREFIX, "    for key in keys:", "    for key in ():"),
    # Rows and batches.
    Mutant(
        "positions frozen past token 64",
        _BATCHES,
        "ForwardBatch(token_ids, token_positions,",
        "ForwardBatch(token_ids, token_positions.clamp(max=64),",
    ),
    Mutant("prompt logprobs are those of the first row", _RUNNER, "hidden[start : start + count]", "hidden[:count]"),
    Mutant(
        "prompt logprobs of rows that are not first are shifted",
        _RUNNER,
        "start, first = int(rows.bounds[row]), ",
        "start, first = max(int(rows.bounds[row]) - 1, 0), ",
    ),
    Mutant(
        "prompt logprobs of the token before",
        _RUNNER,
        "self.rows.tokens[seat, first + 1 : first + 1 + count]",
        "self.rows.tokens[seat, first : first + count]",
    ),
    Mutant("sampled tokens are not written back", _RUNNER, " = sampled.tokens.long().clamp_min(0)", "  # noqa: B018"),
    Mutant("blocks are not copied", _RUNNER, "        self._copy(step.copies)\n", ""),
    Mutant(
        "decodes of the second row on see the first one's table",
        _BATCHES,
        "own, block_table[part], int(",
        "own, block_table[part][:1].expand(len(counts[part]), -1), int(",
    ),
    Mutant(
        "a prefix hit is computed as if it were not",
        _ROWS,
        "num_computed[request.seat] = request.num_computed_tokens",
        "num_computed[request.seat] = 0",
    ),
    Mutant("what was generated before a preemption is prompt", _ROWS, "] = request.num_prompt_tokens", "] = len(ids)"),
    Mutant(
        "further blocks replace the last one",
        _ROWS,
        "start = self._num_blocks[group][seat]",
        "start = max(self._num_blocks[group][seat] - 1, 0)",
    ),
    # Sampling.
    Mutant("min_p dropped", _SEAT_PARAMS, "self.min_p[seat] = params.min_p", "self.min_p[seat] = 0.0"),
    Mutant("top_p of the seat's previous user", _SEAT_PARAMS, "        self.top_p[seat] = params.top_p\n", ""),
    Mutant("seeds of 32 bits", _SEAT_PARAMS, "    seed &= 2**64 - 1\n", "    seed &= 2**32 - 1\n"),
    Mutant("logprobs after penalties", _SAMPLER, "[self._gather(raw, ", "[self._gather(logits[chosen], "),
    Mutant("bad words begin in the prompt", _PENALTIES, " & (positions - lengths >= start_at)", ""),
    Mutant("allowed_token_ids ignored alone", _PENALTIES, "bool(params.allowed_token_ids) or any", "any"),
    Mutant(
        "allowed_token_ids ignored with min_tokens",
        _PENALTIES,
        "if params.allowed_token_ids:",
        "if params.allowed_token_ids and not params.min_tokens:",
    ),
    Mutant("min_tokens mask one token too long", _PENALTIES, "(positions < free_at)", "(positions <= free_at)"),
    Mutant("min_tokens mask one token too short", _PENALTIES, "(positions < free_at)", "(positions + 1 < free_at)"),
    Mutant("logit bias of the seat's previous user", _PENALTIES, "        self.bias_ids[seat] = -1\n", ""),
    Mutant(
        "prompt mask of the seat's previous user",
        _PENALTIES,
        "self.prompt_mask[seat] = to_device(",
        "self.prompt_mask[seat] |= to_device(",
    ),
    Mutant(
        "output counts of the seat's previous user",
        _PENALTIES,
        "self.output_counts[seat] = to_device(",
        "self.output_counts[seat] += to_device(",
    ),
    Mutant(
        "output counts not restored on resume",
        _PENALTIES,
        "self.output_counts[seat] = to_device(counts",
        "self.output_counts[seat] = to_device(0 * counts",
    ),
    Mutant(
        "penalties of the seat's previous user",
        _PENALTIES,
        "seats = torch.where(to_device(",
        "seats = rows.row_to_seat; _ = torch.where(to_device(",
    ),
    Mutant(
        "frequency penalty counts as presence",
        _PENALTIES,
        "self.frequency[seat] = params.frequency_penalty",
        "self.frequency[seat] = params.presence_penalty",
    ),
    Mutant(
        "every token counts twice", _PENALTIES, "(tokens >= 0).int(), accumulate=True)", "2 * (tokens >= 0).int(), accumulate=True)"
    ),
    # Outputs.
    Mutant(
        "stop strings before min_tokens count",
        _OUTPUT,
        "search=request.num_output_tokens > request.params.min_tokens",
        "search=True",
    ),
    Mutant("deltas repeat all logprobs", _OUTPUT, "self.logprobs[len(self.logprobs) - len(token_ids) :]", "self.logprobs"),
    Mutant("characters in pieces are lost at the end", _OUTPUT, "            text += detokenizer.flush()\n", "            pass\n"),
    Mutant(
        "what may become a stop string is lost at the end",
        _OUTPUT,
        "                text += self.stop_strings.flush()\n",
        "                pass\n",
    ),
    Mutant("the text of a stop token is never told", _OUTPUT, " or request.params.include_stop_str_in_output):", "):"),
    Mutant("ranks from 0", _OUTPUT, "found.top_logprobs), 1)", "found.top_logprobs), 0)"),
    Mutant("prompt logprobs come again when a request resumes", _OUTPUT, "in entries[len(known) - 1 - first :]]", "in entries]"),
    Mutant("stop strings are sought in the new text only", _DETOKENIZER, "max(0, old - len(stop) + 1))", "old)"),
    Mutant("the last stop string given wins", _DETOKENIZER, "at, _, stop = min(found)", "at, _, stop = found[-1]"),
    Mutant("nothing is held back", _DETOKENIZER, "self._held = 0 if self._include else min(", "self._held = 0 * min("),
    Mutant("special tokens are told", _DETOKENIZER, '["" if i in special else text for', "[text for"),
    Mutant(
        "characters in pieces are told piece by piece",
        _DETOKENIZER,
        "if text is not None and (not self._pending or not text):",
        "if text is not None:",
    ),
    # Streams.
    Mutant("AsyncEngine never aborts", _ASYNC, "self._client.close(stream.key, abort=not stream.finished)", "pass"),
    Mutant("abort() does nothing", _ASYNC, "                self._client.abort(stream.key)", "                pass"),
    Mutant(
        "streams are not told that the engine is dead", _CLIENT, "        self._hand_on((key, self.dead_error) for key in keys)", ""
    ),
    Mutant("a closed loop ends the reader", _CLIENT, "except RuntimeError:  # the loop is closed", "except KeyError:  #"),
    Mutant("the engine's process passes over aborts", _PROCESS, "if outputs := engine.abort([key]):", "if outputs := []:"),
    # Replicas.
    Mutant("a dead replica is chosen", _REPLICAS, "if not client.is_dead}", "}"),
    Mutant("the router knows of nobody in flight", _REPLICAS, "client.in_flight.add(key, num_completions, num_tokens)", "pass"),
    Mutant("of several completions one is in flight", _REPLICAS, 'getattr(add.params, "n", 1)', "1"),
    Mutant("keys of calls and of requests meet", _REPLICAS, 'f"replicated-{next(self._keys)}"', 'f"{next(self._keys)}"'),
    Mutant(
        "a replica that cannot start leaves the others",
        _REPLICAS,
        "                client.shutdown()\n            raise",
        "                pass\n            raise",
    ),
    Mutant("the roomiest replica speaks for all", _REPLICAS, "self.info = min(", "self.info = max("),
    Mutant("the router knows no prompt's length", _REPLICAS, "len(add.prompt.token_ids)", "0"),
    Mutant(
        "who waits for the router is not told of the end",
        _REPLICAS,
        "            _tell(request.receiver, self.dead_error)",
        "            pass",
    ),
    Mutant(
        "what cannot be prepared is told nobody",
        _REPLICAS,
        "                _tell(request.receiver, as_exception(error))",
        "                pass",
    ),
    Mutant(
        "a request is lost with the replica that it was sent to",
        _REPLICAS,
        "                    continue  # it died just now",
        "                    return",
    ),
    Mutant(
        "an abort overtakes its request",
        _REPLICAS,
        "        self._inbox.put((key, None))  # behind",
        "        self._requests[key].client and self._requests[key].client.abort(key)  # before",
    ),
    Mutant("requests are counted from their sending on", _FRONT, "time.time() - late_s", "time.time()"),
    Mutant("steps tell old places", _FRONT, "        self.places.clear()\n", ""),
    Mutant(
        "statistics are of one replica",
        _FRONT,
        "total_stats([report.stats for report in self._reports()])",
        "self._reports()[0].stats",
    ),
    Mutant("who ended is still in flight", _CLIENT, "self.in_flight.take(output.request_id, output.finished)", "pass"),
    Mutant(
        "who was left is still in flight",
        _CLIENT,
        "            self.abort(key)\n            self.in_flight.take(key, finished=True)",
        "            self.abort(key)",
    ),
    Mutant("who was refused is still in flight", _CLIENT, "            self.in_flight.take(message.key, finished=True)\n", ""),
    Mutant("a replica may hang", _CLIENT, "            if was_busy:\n                return True\n", ""),
    Mutant("a replica without work hangs", _CLIENT, "was_busy = self.in_flight.num_running > 0 or", "was_busy = True or"),
    Mutant("a call may hang", _CLIENT, " or bool(self._unanswered)", ""),
    Mutant(
        "a call never ends",
        _CLIENT,
        "            self._unanswered.discard(message.key)\n            self._hand",
        "            self._hand",
    ),
    Mutant(
        "prompts wait until their request ends",
        _ROUTER,
        "self.num_queued_tokens -= num_queued",
        "self.num_queued_tokens -= num_queued * finished",
    ),
    Mutant("a seed by the replica", _FRONT, "request_seed(self.config.seed, self._num_added)", "None"),
    Mutant("what was aborted is handed out", _FRONT, "self.replicas.close(waiting.key, abort=True)", "pass"),
    Mutant("a prompt that never fits is sent", _FRONT, "        self._limits.longest_total(num_tokens, complete.max_tokens)\n", ""),
    Mutant(
        "replicas share a GPU", _BUILD, "parallel.first_device + index * parallel.tp * parallel.pp if", "parallel.first_device if"
    ),
    Mutant(
        "the cache of a replica that works is forgotten",
        _ASYNC,
        "if any(client.in_flight.num_running for",
        "if False and any(client for",
    ),
    Mutant(
        "the engine's process reads no message while it works",
        _PROCESS,
        "while not engine.has_unfinished() or pipe.poll(WAIT_S if engine.is_waiting else 0):",
        "while not engine.has_unfinished():",
    ),
    Mutant("the engine's process spins while all wait for grammars", _PROCESS, "WAIT_S if engine.is_waiting else 0", "0"),
    # What a grammar allows, and penalties.
    Mutant("a mask of the row before", _SAMPLE_C, "c->bitmask + r * words", "c->bitmask + (r ? r - 1 : r) * words"),
    Mutant("the last tokens of a mask are not read", _SAMPLE_C, "t < count % 32;", "t < 0;"),
    Mutant("presence without occurrence", _SAMPLE_C, "(counts[t] > 0 ? presence : 0)", "presence"),
    # Recordings on a CPU.
    Mutant(
        "a recording forgets what its kernels read", _RECORDING, "if not self._arena.owns(tensor))", "if self._arena.owns(tensor))"
    ),
    Mutant("a recording keeps everything", _RECORDING, "if not self._arena.owns(tensor))", ")"),
    Mutant(
        "memory is free while it is in use",
        _RECORDING,
        "weakref.finalize(part, lambda: self._free.append(block))",
        "self._free.append(block)",
    ),
    Mutant("memory is never free", _RECORDING, "weakref.finalize(part, lambda: self._free.append(block))", "pass"),
    Mutant("too small a block serves", _RECORDING, "if len(block) >= size]", "if len(block) * 4 >= size]"),
    Mutant(
        "what is done in place is done once",
        _RECORDING,
        "        if func._schema.is_mutable:\n            self._add(again)",
        "        if func._schema.is_mutable:\n            pass",
    ),
    Mutant(
        "what torch computes is computed once", _RECORDING, "        elif not _is_view(result, args):\n", "        elif False:\n"
    ),
    Mutant(
        "kernels run behind the torch operations that follow them",
        _RECORDING,
        "        self._end_kernels()\n        self._parts.append(part)",
        "        self._parts.append(part)",
    ),
    Mutant("a mask selects in a recording", _RECORDING, "i is not None and i.dtype == torch.bool", "i is None"),
    Mutant("composite functions are recorded whole", _RECORDING, "= func.decompose(*args, **kwargs)", "= NotImplemented"),
    Mutant("the recorder stays", _RECORDING, "        RECORDER.reset(token)", "        pass"),
    Mutant(
        "a recording does not keep its memory",
        _RECORDING,
        "mode.finish(), output, arena, mode",
        "mode.finish(), output, None, mode",
    ),
    Mutant("every step is recorded anew", _DEVICES, "                if recording is not None:\n", "                if False:\n"),
    Mutant(
        "padding has a length",
        _GRAPHS,
        "lengths[:count] = torch.from_numpy(rows.lengths)",
        "lengths.fill_(1)[:count] = torch.from_numpy(rows.lengths)",
    ),
    Mutant(
        "tables of the step before",
        _GRAPHS,
        "        self.tables[:, :count, :width].copy_(tables, non_blocking=True)\n",
        "        self.tables[:, :1, :width].copy_(tables[:, :1], non_blocking=True)\n",
    ),
    # What checkpoints hold.
    Mutant(
        "columns of AWQ in the order of nibbles",
        _QUANTIZATION + "packing.py",
        "columns[..., list(AWQ_COLUMN_OF_NIBBLE)] = nibbles",
        "columns[:] = nibbles",
    ),
    Mutant("values of 3 bits end with their word", _QUANTIZATION + "packing.py", "((low | high) &", "(low &"),
    Mutant(
        "2 and 3 bits keep their middle",
        _QUANTIZATION + "canonical.py",
        "quantized = quantized + (SYMMETRIC_ZERO - middle)",
        "pass",
    ),
    Mutant("activations have no zero point", _QUANTIZATION + "canonical.py", '"static_zero": input_zero}', '"static_zero": None}'),
    Mutant("blocks have activations per token", _QUANTIZATION + "canonical.py", '"group" if blocks else "token"}', '"token"}'),
    Mutant(
        "rows of fused projections stay head by head",
        _QUANTIZATION + "modules.py",
        'if part.layout != "interleaved":\n        return loaded',
        "return loaded",
    ),
    Mutant(
        "shards of other orders are joined", _QUANTIZATION + "modules.py", 'if not same(a.get("perm"), b.get("perm")):', "if False:"
    ),
    Mutant("zero points of experts are lost", _QUANTIZATION + "experts.py", 'rows.copy_(part.tensors["zeros"])', "pass"),
    Mutant(
        "zero points of the first version are one too small",
        _QUANTIZATION + "gptq.py",
        "if whole and self.zero_offset:",
        "if False:",
    ),
    Mutant(
        "act-order is ignored",
        _QUANTIZATION + "gptq.py",
        "            quantized = quantized[:, perm.long()]\n",
        "            perm = None\n",
    ),
    Mutant(
        "zero points of compressed-tensors along the inputs",
        _QUANTIZATION + "compressed_tensors.py",
        "unpack_words(zero_words.T.contiguous(), self.bits).T[: module.rows]",
        "torch.full(scales.shape, 1 << (self.bits - 1), dtype=torch.uint8)",
    ),
    Mutant(
        "routers are quantized on load",
        _QUANTIZATION + "on_load.py",
        "        if not part.quantizable:\n            return super().linear(part, source)\n",
        "",
    ),
    Mutant(
        "scales of the cache are not read",
        _QUANTIZATION + "kv_scales.py",
        "return scale if bool(scale > 0) else None",
        "return None",
    ),
    Mutant("a gemm's note is dropped", _LINEAR, "part.params, note=part.note)", "part.params)"),
    Mutant(
        "quantized inputs lose their zero point",
        _LINEAR,
        'rest = (part.input.tensors.get("static_zero"),) if takes_zero else ()',
        "rest = (None,) if takes_zero else ()",
    ),
    Mutant("a named quantize_activation is fused away", _PLAN, 'if "quantize_activation" in self.choices.named or', "if"),
    Mutant(
        "errors of rounding are not made up for",
        _GPTQ_SEARCH,
        "now[:, i:] -= errors[:, i : i + 1] * inverse[i, i : now.shape[1]]",
        "pass",
    ),
    # What a simulated step takes.
    Mutant(
        "a reduce carries each element once",
        _TIMERS,
        '"all_reduce": lambda ranks: 2 * (ranks - 1) / ranks',
        '"all_reduce": lambda ranks: (ranks - 1) / ranks',
    ),
    Mutant("links are used to the full", _TIMERS, "/ (self._device.link_bytes_s * efficiency)", "/ self._device.link_bytes_s"),
    Mutant(
        "decode attention is never scaled", _TIMERS, "return self.factor * self.seconds.of_decode", "return self.seconds.of_decode"
    ),
    Mutant(
        "every request takes the least time of a kernel",
        _TIMERS,
        "bandwidth) + self._floor_s",
        "bandwidth) + times * self._floor_s",
    ),
    Mutant("the host has no noise", _SIMULATED, "now_s + noise * self._overhead_s", "now_s + self._overhead_s"),
    Mutant(
        "launches have no noise", _SIMULATED, "launch_s = noise * launches * self._launch_s", "launch_s = launches * self._launch_s"
    ),
    Mutant("noise counts twice", _SIMULATED, "max(start_s + noise * device_s,", "max(start_s + noise * noise * device_s,"),
    Mutant("replicas have the same noise", _SIMULATED, "(2**64 - 1), index))", "(2**64 - 1), 0))"),
    Mutant("the weights of one device are the model's", _SIMULATED, "round(config.parallel.tp * sum(", "round(sum("),
    Mutant(
        "spread experts lie on every device", _RANKS, "(part.num_experts + redundant) // ep)", "(part.num_experts + redundant))"
    ),
    Mutant("the device least alike is transferred", _SIMULATED_DEVICE, "return min(found", "return max(found"),
    # What was measured.
    Mutant(
        "one ceiling for all number formats",
        _CALIBRATION,
        'unit = wanted if wanted in own and wanted in device.flops_s else "bf16"',
        'unit = "bf16"',
    ),
    Mutant("the farthest part of a range", _CALIBRATION, "return min(found, key=lambda", "return max(found, key=lambda"),
    Mutant("larger shapes count as measured", _OPERATOR_MODEL, " or (at > self.high + _EDGE).any()", ""),
    Mutant(
        "more requests than were measured count as measured",
        _OPERATOR_MODEL,
        "self.outside or beyond or above",
        "self.outside or beyond",
    ),
    Mutant("a state is read, not written", _OPERATORS, "len(q_lens) * 8 * values", "len(q_lens) * 4 * values"),
    Mutant(
        "counts of calls are dropped",
        _PHYSICS,
        "np.ones(len(work)) if weights is None else weights / weights.mean()",
        "np.ones(len(work))",
    ),
    Mutant("what was not measured is judged by", _KRIGING, "[seen].mean()", ".mean()"),
    Mutant("the worse kernel is taken", _KRIGING, "kernel = min(found", "kernel = max(found"),
    Mutant("fits see what is left out", _FITTING, "make_model(samples.where(~held), hints)", "make_model(samples, hints)"),
    # What is told of runs.
    Mutant("goodput takes the wrong objective", _METRICS, "else tpot, slo.tpot_s)", "else tpot, slo.e2e_s)"),
    Mutant("engines of one step add up", _METRICS, "now / len(used)", "now"),
    Mutant(
        "a step counts before it", _RECORDS, "self.areas, self.last, end_s - self.last_s", "self.areas, state, end_s - self.last_s"
    ),
    Mutant("intervals of one side", _STATISTICS, "[tail, 1 - tail]", "[2 * tail, 1 - 2 * tail]"),
    Mutant("t of all repeats", _STATISTICS, "(min(num, FIRST_LOOK) if sequential else num) - 1", "num - 1"),
    Mutant(
        "pairs of other seeds",
        _COMPARISON,
        "if c != column and not _follows",
        "if c != column and not is_repeat(c) and not _follows",
    ),
    Mutant("queues are no load", _ROUTER, "return replica.num_waiting + replica.num_running", "return replica.num_running"),
    Mutant("who waits gets older last", _POLICIES, "num_output_tokens + self._ageing", "num_output_tokens - self._ageing"),
    Mutant("all settings have the first one's base", _REPEATING, "values[:, i % num_bases]", "values[:, 0]"),
    Mutant("failed jobs are finished", _SWEEP_FOLDER, 'row is not None and row["status"] == "ok" and', "row is not None and"),
    # What clients are told, and asked for.
    Mutant("a parameter never reaches the engine", f"{_SERVER}sampling.py", '    "frequency_penalty",\n', ""),
    Mutant(
        "the server passes over what a model recommends",
        f"{_SERVER}sampling.py",
        "serving.engine.inputs.default_params(), structured",
        "SamplingParams(), structured",
    ),
    Mutant("priorities of bodies are dropped", f"{_SERVER}generation.py", "        return body.priority\n", "        return 0\n"),
    Mutant(
        "the usage of a chunk is that of all choices",
        f"{_SERVER}chat.py",
        "count = num_tokens[completion.index]",
        "count = sum(num_tokens)",
    ),
    Mutant(
        "a call hides that its message was cut",
        f"{_SERVER}chat.py",
        'if completion.finish_reason == "stop" and parser.num_calls',
        "if completion.finish_reason and parser.num_calls",
    ),
    Mutant("salts of chats are lost", f"{_SERVER}chat.py", "cache_salt=self.body.cache_salt)", "cache_salt=None)"),
    Mutant(
        "chats forget what stopped them", f"{_SERVER}message.py", "new.finish_reason, new.stop_reason", "new.finish_reason, None"
    ),
    Mutant(
        "echoes have the log-probabilities of the first prompt",
        f"{_SERVER}completions.py",
        "choice = state.choice(completion, found_logprobs[index])",
        "choice = state.choice(completion, found_logprobs[0])",
    ),
    Mutant(
        "the usage of a stream forgets the cache",
        f"{_SERVER}completions.py",
        "num_completion, sum(cached)), last=True)",
        "num_completion, 0), last=True)",
    ),
    Mutant("streams end without a word", f"{_SERVER}sse.py", '"body": DONE, "more_body": False', '"body": b"", "more_body": False'),
    Mutant(
        "bodies are read before keys",
        f"{_SERVER}app.py",
        """    app.add_middleware(BodyLimits, max_bytes=config.max_body_bytes, timeout_s=config.body_timeout_s)
    if keys := config.api_keys():
        app.add_middleware(Authentication, keys=keys)""",
        """    if keys := config.api_keys():
        app.add_middleware(Authentication, keys=keys)
    app.add_middleware(BodyLimits, max_bytes=config.max_body_bytes, timeout_s=config.body_timeout_s)""",
    ),
    Mutant("a key of any scheme opens", f"{_SERVER}auth.py", 'scheme.lower() == b"bearer" and any(matches)', "any(matches)"),
    Mutant(
        "the queue takes one more",
        f"{_SERVER}serving.py",
        "if self.num_in_work >= self._most_in_work:",
        "if self.num_in_work > self._most_in_work:",
    ),
    Mutant(
        "beams have another penalty by default", f"{_SERVER}beams.py", "length_penalty=1.0 if body", "length_penalty=0.0 if body"
    ),
    Mutant("steps of beams have no priority", _BEAM_SEARCH, "priority=priority):", "priority=0):"),
    Mutant("a beam offers fewer tokens", _BEAM_SEARCH, "[: 2 * self._params.beam_width]", "[: self._params.beam_width]"),
    Mutant("the length penalty has the other sign", _BEAM_SEARCH, "longer = self._params", "longer = -self._params"),
    Mutant(
        "numbers of calls begin with one",
        f"{_PARSING}message_parser.py",
        "ToolCall(self.num_calls - 1,",
        "ToolCall(self.num_calls,",
    ),
    Mutant(
        "the beginning of a tag is given away",
        f"{_PARSING}source.py",
        "longest = max(map(len, tags)) - 1",
        "longest = max(map(len, tags)) - 2",
    ),
    Mutant(
        "a text that says null is none",
        f"{_PARSING}qwen3_coder.py",
        """("null" in types or (types and "string" not in types))""",
        "types",
    ),
    Mutant(
        "grammars with and without white space are one",
        _COMPILER,
        "        key = backend_of(config.backend, spec), spec\n",
        "        key = backend_of(config.backend, spec), replace(spec, any_whitespace=True)\n",
    ),
    Mutant(
        "compilations have no limit",
        _COMPILER,
        "return time.monotonic() - job.asked_s > self._config",
        "return False and self._config",
    ),
    Mutant(
        "who left still waits for its grammar", _MATCHERS, "                self.compiler.release(job)\n", "                pass\n"
    ),
    Mutant(
        "ends are held back one token longer",
        _MATCHERS,
        "self.most_held - num_output_tokens)",
        "1 + self.most_held - num_output_tokens)",
    ),
    Mutant(
        "masks of a step before do for rows in another order", _MATCHERS, "or failures or constraints != together", "or failures"
    ),
    Mutant(
        "nobody fills the masks of rows that were not in the last step",
        _MATCHERS,
        "if has_drafts or constraints != self._filled[0]:",
        "if has_drafts:",
    ),
    Mutant("what may take minutes is filled by the engine's thread", _MATCHERS, "if backend.is_bounded else math.inf", ""),
    Mutant("masks that the engine's thread fills lie upon each other", _LLGUIDANCE, "start + row * row_bytes", "start"),
    Mutant("an error of the library is nobody's", _LLGUIDANCE, "if matcher.state.is_error():", "if False:"),
    Mutant("masks are never filled by the engine's thread", _MATCHERS, "expected_s < SHORT_FILL_S", "False"),
    Mutant(
        "a library's panic in the engine's thread ends all",
        _WATCHED,
        "except BaseException as error:  # or a panic",
        "except ZeroDivisionError as error:",
    ),
    Mutant(
        "a mask counts the tokens of another row", _MATCHERS, "rows[row].num_output_tokens)", "rows[masked[0]].num_output_tokens)"
    ),
    Mutant(
        "degrees of parallelism are swapped",
        _ENGINE_ARGS,
        "ParallelConfig(tensor_parallel_size, pipeline_parallel_size,",
        "ParallelConfig(pipeline_parallel_size, tensor_parallel_size,",
    ),
    # What the server and its clients count.
    Mutant(
        "ends of buckets belong to the next",
        _ENGINE_METRICS,
        "searchsorted(self.bounds, values)",
        "searchsorted(self.bounds, values, 'right')",
    ),
    Mutant(
        "buckets do not add up", _PROMETHEUS, "zip(ends, accumulate(values.counts.tolist()))", "zip(ends, values.counts.tolist())"
    ),
    Mutant("who was aborted has latencies", _ENGINE_METRICS, 'reason in ("stop", "length") and', "True and"),
    Mutant(
        "decodes behind a prompt count twice", _ENGINE_METRICS, " - max(chunk.end - chunk.request.num_prompt_tokens, 0), 0)", ", 0)"
    ),
    Mutant("preemptions of requests are not told", _ENGINE_METRICS, "*lengths, request.num_preemptions))", "*lengths, 0))"),
    Mutant(
        "seconds are told as milliseconds", f"{_LOAD}table.py", '1e3 * metrics[f"{name}_{part}_s"]', 'metrics[f"{name}_{part}_s"]'
    ),
    Mutant("the server's counts hold the warm-up", f"{_LOAD}run.py", "before = await client.metrics()", 'before = ""'),
    Mutant("runs share their prefixes", f"{_LOAD}run.py", "if http.extensions:", "if False:"),
    Mutant(
        "what the client held back counts as slow",
        f"{_LOAD}driver.py",
        "record.queued_s, record.arrival_s = record.sent_s - record.arrival_s, record.sent_s",
        "record.queued_s = record.sent_s - record.arrival_s",
    ),
    Mutant(
        "gaps of tokens pass as those of chunks", f"{_LOAD}metrics.py", "gaps([record.chunk_times_s", "gaps([record.token_times_s"
    ),
    Mutant("wrong drafts stay computed", _RUNNER, "if rows.drafts is not None and sampled.accepted is not None:", "if False:"),
    Mutant("a right draft behind a wrong one counts", _ACCEPTANCE, ".cumprod(1).sum(1)", ".sum(1)"),
    Mutant("what stands behind the drafts is one", _ACCEPTANCE, "right[drafts.grid] & drafts.is_draft", "right[drafts.grid]"),
    Mutant("penalties do not see the last draft", _PENALTIES, "before <= drafts.nth[:, None]", "before < drafts.nth[:, None]"),
    Mutant("penalties count wrong drafts", _PENALTIES, "tokens = rows.drafts.accepted_only(tokens, accepted)", "pass"),
    Mutant("the host's bound passes as the position", _RUNNER, "if first is not None:", "if False:"),
    Mutant("lengths are the host's bound", _BATCHES, "lengths_all = (lengths_all + behind).int()", "pass"),
    Mutant("recordings take the host's bound", _GRAPHS, "if requests.computed is not None:", "if False:"),
    Mutant("drafts of the host stand one further", _ROWS, "(seat, end + nth, token)", "(seat, end + nth + 1, token)"),
    Mutant(
        "drafts beyond the end",
        _SPECULATION,
        "left = request.max_total - request.num_tokens - 1",
        "left = request.max_total - request.num_tokens",
    ),
    Mutant(
        "who proposes on the host does not wait",
        _SPECULATION,
        "if request.num_tokens > len(request.token_ids):\n            return None\n        return self.propose",
        "return self.propose",
    ),
    Mutant("drafts have no room", _SCHEDULER, "ahead = num_drafts if", "ahead = 0 if"),
    Mutant("the last block of a prefix counts", _MANAGER, "limit - self._reads_ahead", "limit"),
    Mutant("prompts have no room for drafts", _SCHEDULER, "request, start + count + ahead, step", "request, start + count, step"),
    Mutant("heads read the token of their slot", _HEAD, "    ahead = 1\n", "    ahead = 0\n"),
    Mutant("a recorded head reads the token of its slot", _GRAPHS, "positions + ahead if ahead else positions", "positions"),
    Mutant("a chain begins again and again", _CHAIN, "        self._states = self._guesser.extend", "        self._guesser.extend"),
    Mutant("a recorded chain begins again and again", _CHAIN_GRAPHS, "            kept.copy_(states)\n", ""),
    Mutant("a recorded chain follows a wrong draft", _CHAIN_GRAPHS, "(ends - num_wrong)", "(ends + 0 * num_wrong)"),
    Mutant("drafts of a recording lie in blocks of others", _GRAPHS, " + requests.num_drafts,", ","),
    Mutant(
        "drafts have noise of their own",
        _SAMPLER,
        "return self._draw_draft(logits, row_to_seat, position)",
        "return self._draw_draft(logits, row_to_seat, position + 1)",
    ),
    Mutant("a draft model does not read the newest token", _CHAIN, "* (wanted and not ahead)", "* 0"),
    Mutant("a recorded draft model does not read the newest token", _CHAIN_GRAPHS, "lengths + lengths.clamp_max(1)", "lengths + 0"),
    Mutant(
        "log-probabilities of wrong drafts are told",
        _RUNNER,
        "for i, index in enumerate(kept) if index",
        "for i, index in zip(range(len(kept)), range(len(kept))) if index",
    ),
    Mutant("a draft model is followed beyond its end", _SPECULATION, "if self.max_model_len is not None:", "if False:"),
    Mutant("drafts are checked that nobody made", _SPECULATION, "most = min(most, request.num_proposed)", "pass"),
    Mutant("right drafts alone were checked", _SPECULATION, "zip([sum(ended), *right], all_right[:most])", "zip(right, all_right)"),
    Mutant("a row with all drafts right had one more checked", _SPECULATION, "before - full for", "before for"),
    Mutant("nobody knows whose drafts were all right", _SPECULATION, "request.was_right = count == room", "pass"),
    Mutant("one right draft is as good as all", _SPECULATION, "request.was_right = count == room", "request.was_right = count > 0"),
    Mutant("a step without drafts says that they were wrong", _SPECULATION, "            if room:\n", "            if True:\n"),
    Mutant("few drafts leave as much to guess as many", _DEPTH, "1.0 - stays * (after_right", "1.0 - 0.0 * (after_right"),
    Mutant("trials cost nothing", _DEPTH, "> self._left:", "> math.inf:"),
    Mutant("what is not the best is never tried", _DEPTH, "> self._left:", "> -math.inf:"),
    Mutant("a step that compiles counts", _DEPTH, "min(each, most) for each", "each for each"),
    Mutant("few rows take as long as many", _DEPTH, "scale * kind.mean", "kind.mean"),
    Mutant("a step lasts from its submission on", _SPECULATION, "if was_busy else", "if False else"),
    Mutant("a step lasts from the end of the one before, whenever that was", _SPECULATION, "if was_busy else", "if True else"),
    Mutant("steps with prompts tell how long drafts take", _SPECULATION, "step_s if is_known else None", "step_s"),
    Mutant("a clock that jumps tells how long a step took", _SPECULATION, "0 < step_s < math.inf and", "0 < step_s and"),
    Mutant("a step asked for as many drafts as there was room for", _SPECULATION, "scheduled.num_drafts, checked", "most, checked"),
    Mutant("one new request, and there was nothing to do before", _SPECULATION, "any(request.arrival_s", "all(request.arrival_s"),
    Mutant("drafts that hardly pay are made", _DEPTH, "(1 if best else 1 + self.MARGIN)", "1"),
    Mutant("all times are asked for", _DEPTH, "set(range(17))", "set(range(200))"),
    Mutant("drafts exceed the budget", _SCHEDULER, "min(num_drafts, most - 1)", "min(num_drafts, most)"),
    Mutant(
        "rows with drafts stand behind prompts", _SCHEDULED, "1 if self.num_logits > 1 else 2", "2 if self.num_logits > 1 else 1"
    ),
    Mutant(
        "who proposes does not hear the last tokens",
        _SPECULATION,
        "self._ask(self.proposer.stop, request.request_id, request.token_ids)",
        "self._ask(self.proposer.stop, request.request_id)",
    ),
    Mutant(
        "drafts from suffixes of any length are as many", _SUFFIX, "min(n * factor, self._depth - n)", "min(n, self._depth - n)"
    ),
    Mutant("unlikely suffixes are followed", _SUFFIX, "config.suffix_decoding_min_token_prob", "0.0"),
    Mutant("the luck of drafts is the same everywhere", _ACCEPTANCE, ", rows.position[first]\n", ", 0 * rows.position[first]\n"),
    Mutant("rates count for drafts that are not there", _ACCEPTANCE, ".sum(1), drafts.num_drafts)", ".sum(1), 99)"),
    Mutant(
        "penalties see the draft that is checked",
        _PENALTIES,
        "rows.position[:, None] - before)",
        "rows.position[:, None] - before + 1)",
    ),
    Mutant("the token behind right drafts is not counted", _STEP_ROWS, "self.nth <= accepted", "self.nth < accepted"),
    Mutant("min_tokens end by the host's bound", _PENALTIES, "if position - rows.ahead < (free", "if position < (free"),
    Mutant(
        "bad words stand where the host believes",
        _PENALTIES,
        "positions = rows.position[rows_of]",
        "positions = torch.from_numpy(rows.positions)[rows_of]",
    ),
    Mutant(
        "ends are held back in a step's first row alone",
        _MATCHERS,
        "max(0, self.most_held - num_output_tokens)",
        "max(0, min(1, self.most_held - num_output_tokens))",
    ),
    Mutant("tokens that a head never drafts are drafted", _HEAD, "-torch.inf)\n    whole", "0.0)\n    whole"),
    Mutant("a head's tokens pass as the model's", _HEAD, "whole[:, target_ids] =", "whole[:, : len(target_ids)] ="),
    Mutant("every draft is the first head's", _HEAD, "of_heads[:, nth]", "of_heads[:, 0]"),
    Mutant("copies have no part of the drafter's", _DRAFT_CACHE, "if group == self._group:", "if group != self._group:"),
    Mutant(
        "heads read states without what is added to them", _DECODER, "x.clone() if residual is None else x + residual", "x.clone()"
    ),
    Mutant(
        "greedy rows take drafts by chance",
        _VERIFY_DRAFT,
        "torch.where(greedy, best == draft[:, 0], u * q_draft < p_draft)",
        "u * q_draft < p_draft",
    ),
    Mutant(
        "nothing is drawn where nothing is left",
        _VERIFY_DRAFT,
        "torch.where((left == -torch.inf).all(dim=-1, keepdim=True), scores, left)",
        "left",
    ),
    # Pooling.
    Mutant(
        "the first state of a prompt is that of its last part",
        _POOLED_STATES,
        "states[0].clone() if kept is None else kept",
        "states[0].clone()",
    ),
    Mutant("a mean forgets the parts before", _POOLED_STATES, "total if kept is None else kept + total", "total"),
    Mutant("all states are those of the last part", _POOLED_STATES, "else torch.cat((kept, states))", "else states.clone()"),
    Mutant(
        "a seat keeps what was pooled in it",
        _POOLED_STATES,
        "            self._kept[request.seat] = None\n",
        "            self._kept.setdefault(request.seat, None)\n",
    ),
    Mutant("vectors of tokens come from the prefix cache", _POOLING_RULES, " or task in TOKEN_TASKS", ""),
    Mutant("what a request asks for does not count", _POOLING_RULES, "self.use_activation if params", "True if params"),
    Mutant("types that the model has not", _POOLING_RULES, " if self.num_token_types > 1 else None", ""),
    Mutant("the second text begins a token late", _POOLING_RUNNER, "positions >= np.repeat", "positions > np.repeat"),
    Mutant("the score of no", _POOLING_LOAD, "rows[1:] - rows[:1]", "rows[:1] - rows[1:]"),
    Mutant("one class of one", _POOLING_READ, '"sigmoid" if classes == 1 else "softmax"', '"softmax"'),
    Mutant(
        "cut after the normalization",
        _POOLING_HEADS,
        "self._finish(part[:, :dimensions], active)",
        "self._finish(part, active)[:, :dimensions]",
    ),
    Mutant("the mean is over the instruction, too", _POOLED_STATES, "num_tokens - self.params[seat].num_unpooled", "num_tokens"),
    Mutant(
        "an instruction ends anywhere in a text",
        _POOLING_RULES,
        "has(self.end_alone, start)\n",
        "any(has(self.end_alone, at) for at in range(len(prompt)))\n",
    ),
    Mutant("names of prompts are dropped", _POOLING_RULES, "if prompt_name is not None and not texts:", "if False:"),
    Mutant(
        "padding before the text",
        _POOLING_RULES,
        "[*ids, *[token] * (length - len(ids))]",
        "[*[token] * (length - len(ids)), *ids]",
    ),
    Mutant("the config's padding", _POOLING_SETTINGS, "token = token if own is None else own", "token = token"),
    Mutant("padding that the model has not", _POOLING_SETTINGS, "not 0 <= token < self.towers.vocab_size", "False"),
    Mutant("pooling twice", _POOLING_FILES, " or places.count(1) > 1", ""),
    Mutant("modules in any order", _POOLING_FILES, "places != sorted(places) or ", ""),
    Mutant("modules lie anywhere", _POOLING_FILES, '        check_inside(folder, path, "modules.json")\n', ""),
    Mutant("rows in the order of arrival", _TOWER_EXECUTOR, "[new[seat] for seat in step.seats]", "list(new.values())"),
    Mutant("images run programs", _IMAGES, ", formats=_FORMATS)", ")"),
    Mutant("images lie on their side", _IMAGES, "return ImageOps.exif_transpose(checked)", "return checked"),
    Mutant("images of any size", _IMAGES, "pixels.shape != self._shape or ", ""),
    Mutant("colors are guessed", _IMAGES, ', input_data_format="channels_last"', ""),
    Mutant("any embeddings go first", _ENCODER_CACHE, "self._kept.move_to_end(image.key)", "pass"),
    Mutant("halves of images are forgotten", _ENCODER_CACHE, " and not self._holders.get(key)]", "]"),
    Mutant(
        "a step encodes whatever it meets", _ENCODER_CACHE, "self._chunked and image.count > self._left < self._budget", "False"
    ),
    Mutant("what a failed step was to forget stays", _ENCODER_CACHE, "[*step.forgotten, *(image", "[*(image"),
    Mutant("failed steps encoded their images", _SCHEDULER, "self.images.lose(scheduled.step_input)", "pass"),
    Mutant("positions of an image stay with its seat", _IMAGE_ROWS, "self.deltas[seat] = 0", "pass"),
    Mutant(
        "a lost device is a broken image", _IMAGE_EMBEDDINGS, "not self._is_alone or is_device_loss(error)", "not self._is_alone"
    ),
    Mutant("a lost device is a broken prompt", _ENCODER_RUNNER, "if is_device_loss(error):", "if False:"),
    Mutant("decoders are scored without their encoder", _QUALITY, "if model.encoding is not None and", "if False and"),
    Mutant(
        "whole prompts encode what the budget leaves", _ENCODER_CACHE, "if sum(new) > self._left < self._budget or not", "if not"
    ),
    Mutant("whole prompts encode what there is no room for", _ENCODER_CACHE, " or not self._make_room(sum(new), own):", ":"),
    Mutant("an image of a whole prompt makes room for another", _ENCODER_CACHE, "and key not in own and not", "and not"),
    Mutant("the budget cuts whole prompts", _ENCODER_CACHE, "is_too_much = self._chunked and ", "is_too_much = "),
    Mutant("whole prompts have any number of images", _ENCODER_CACHE, "if not self._chunked and (total", "if False and (total"),
    Mutant(
        "images of who waits are encoded",
        _SCHEDULER,
        "if not manager.has_room(request, hit",
        "if (not images or images.fit(request, start, count)) and not manager.has_room(request, hit",
    ),
    Mutant("Gemma 3 reads eight times as far", _GEMMA_FAMILY, "    scaled_positions=True,\n", ""),
    Mutant("layers of other towers see all", _TOWERS_FILE, "sum(layer not in vision.fullatt_block_indexes for", "sum(True for"),
    Mutant(
        "drawn tokens stand for images", _PICTURES_FILE, "[other if token in taken else token for token in prompt]", "[*prompt]"
    ),
    Mutant("images stand before what all share", _PICTURES_FILE, "index), min(first, num_tokens)", "index), 0"),
    Mutant("images of other requests come again", _PICTURES_FILE, "index * config.num_images + nth", "index + nth"),
    Mutant("images of other seeds are the same", _PICTURES_FILE, 'f"{self._config.seed} {name}".encode()', 'f"{name}".encode()'),
    Mutant("all images have one size", _PICTURES_FILE, "rng.integers(least_width, most_width + 1)", "least_width"),
    Mutant(
        "images that cannot be are drawn", _PICTURES_FILE, "                check_size(width, height)\n", "                pass\n"
    ),
    Mutant("chunks end within images", _ENCODER_CACHE, "(self._whole and end < image.end) or ", ""),
    Mutant("text goes on behind the shorter side", _ITEMS, "position += max(image.grid)", "position += min(image.grid)"),
    Mutant("users spell placeholders", _IMAGE_PROMPTS, "found[0][0] + BREAK + found[0][1:]", "found[0]"),
    Mutant("prompts without a beginning", _IMAGE_PROMPTS, "self._pattern.split(self._processor.begun(text))", "pieces"),
    Mutant("prefixes are said to be shared", _SERVE_JOB, '"on" if info.prefix_caching else "off"', '"on"'),
    Mutant("videos in conversations", _CHAT, "not part.keys().isdisjoint(_OTHER_MEDIA)", "False"),
    Mutant("every image is a hit", _ENCODER_CACHE, "self.num_hits += is_kept", "self.num_hits += 1"),
    Mutant("what passes by stays", _ENCODER_CACHE, "self._forgotten, list(self._passing)", "self._forgotten, []"),
    Mutant("attended images of any number", _ENCODER_CACHE, "sum(missing.values()) <= self._left or", "True or"),
    Mutant("attended images go first", _ENCODER_CACHE, "elif image.key not in self._passing:", "elif not is_there:"),
    Mutant("attended images are encoded anew", _IMAGE_EMBEDDINGS, "if image.key not in self._kept and image", "if image"),
    Mutant("embeddings without room", _LOCAL_EXECUTOR, "None:\n            return 0\n", "None or True:\n            return 0\n"),
    Mutant("one image more than the limit", _IMAGE_PLACES, "count > self._most:", "count > self._most + 1:"),
    Mutant("images go by any number", _IMAGE_PROMPTS, "if found != (expected", "if not found and found != (expected"),
    Mutant("keys ask queries", _TOWER, 'zip("qkv", tensor', 'zip("kqv", tensor'),
    Mutant("tiles with the colors of another tower", _TILES, "image_mean=_MEAN, image_std=_STD, ", ""),
    Mutant("crops one after the other", _PHI3_TOWER, ".transpose(1, 2).flatten(2, 3)", ".flatten(2, 3)"),
    Mutant("the last of an image sees as its others", _IMAGE_ROWS, "np.setdiff1d(of_images, lasts)", "of_images"),
    Mutant("experts of a step before", _DECODER, "None if batch.images is None else batch.images.experts", "None"),
    Mutant("images start and end where their patches are", _ITEMS, "position += 3", "position += 1"),
    Mutant("images go on as text does", _VISION, "self.merge is not None or self.experts", "self.merge is not None"),
    Mutant(
        "heads and their keys take turns",
        _COGVLM_TOWER,
        "(3, self._num_heads, -1)).permute(2, 0, 3, 1, 4)",
        "(self._num_heads, 3, -1)).permute(3, 0, 2, 1, 4)",
    ),
    Mutant("a step of an image alone", _VISUAL_EXPERTS, "if not len(tokens.language):", "if len(tokens.language):"),
    Mutant("adapters beside visual experts", _MODEL_LOAD, "info.vision is not None and info.vision.experts:", "False:"),
    Mutant("visual experts read rounded outputs of norms", _LAYER_BINDER, ' and f"vision_{linear}" not in parts', ""),
    Mutant(
        "weights beside those of a tied model are passed over",
        _MODEL_LOAD,
        "if a.tied and (a.has_logits or",
        "if False and (True or",
    ),
    Mutant(
        "the answers of a tied model are not looked at",
        _MODEL_LOAD,
        "(info.pooling is not None and info.pooling.answer_tokens)",
        "False",
    ),
    Mutant("of a tied model the first rows are compared", _WEIGHTS, "in range(0, a.vocab_size, _COMPARED_ROWS)", "in range(1)"),
    Mutant("what is forgotten is there all the same", _IMAGE_MIRROR, "self._embeddings.pop(name, None)", "pass"),
    Mutant("a tower takes no time", _SIMULATED, "[self._tower.item(image) for image in step.images]", "[]"),
    Mutant(
        "prompts of one token are decodes", _SIMULATED, "(whole := contexts[:ones] == 1).any()", "(whole := contexts[:0]).any()"
    ),
    Mutant(
        "what an encoder gave for others", _SIMULATED, "self._encoded[step.seats], views)", "self._encoded[: len(views)], views)"
    ),
    Mutant(
        "encoders cost nothing when they run",
        _COST_MODEL,
        "        for rows, item in work.items:\n            priced",
        "        for rows, item in ():\n            priced",
    ),
    Mutant("room between images is stored", _ENCODING, "sum(image.count for image in self.images) if self.images else", ""),
    Mutant("images are seen from the last on", _SIMULATED, "() if given is None else given.views", "()"),
    Mutant("tables of all groups are one", _CALLS, "sum(crosses), crosses.count(False)", "sum(crosses), 1"),
    Mutant(
        "text sees the images of who had its seat",
        _SIMULATED,
        "self._views[new.seat] = () if given is None else",
        "self._views[new.seat] = self._views.get(new.seat, ()) if given is None else",
    ),
    Mutant("what is predicted has images", _SIMULATED, "nobody = [-1] * num_rows", "nobody = list(range(num_rows))"),
    Mutant("as many blocks as fit", _CACHE_MEMORY, " + 1, MAX_BLOCKS)", " + 1, 1 << 40)"),
    Mutant("tokens of images take the weights of text", _COST_MODEL, '("vision", self.num_visual)', '("vision", 0)'),
    Mutant("the last of a simulated image sees as its others", _SIMULATED, "end - start - (end == image.end)", "end - start"),
    Mutant("tokens of images see nothing behind them", _COST_MODEL, "if work.whole_lens:", "if False:"),
    Mutant("norms before visual experts quantize", _CALLS, "if quantizes and not self._has_experts", "if quantizes"),
    Mutant("queries of images are not normalized", _CALLS, 'if "cross_q_norm" in a.family.names:', "if False:"),
    Mutant("keys of images are not normalized", _CALLS, 'if "cross_k_norm" in a.family.names:', "if False:"),
    Mutant(
        "grids of tiles have other numbers",
        _VISION,
        "for grid in tower.supported_aspect_ratios] != grids:",
        "for grid in tower.supported_aspect_ratios] != grids and False:",
    ),
    Mutant("states that are kept take no room", _ENCODER_COST, "(2 + self.kept_states) * self", "2 * self"),
    Mutant(
        "images take no room beside steps",
        _SIMULATED,
        "max(self._placement.activations, encoders.activation_bytes(element))",
        "self._placement.activations",
    ),
    Mutant("padding of tiles is projected", _CALLS, "number.embeddings if self.embeddings", "sum(parts) if self.embeddings"),
    Mutant(
        "images that layers attend to need no embeddings",
        _IMAGE_MIRROR,
        "for image in row.images if row.encoded else ():",
        "for image in ():",
    ),
    Mutant(
        "what tokens see of an encoder is nothing",
        _IMAGE_MIRROR,
        "for place in range(view.start, view.start + view.length):\n                    self",
        "for place in ():\n                    self",
    ),
    Mutant(
        "steps ahead attend to no encoder",
        _COST_MODEL,
        "for rows in work.cross_decodes:\n            self._to_come",
        "for rows in ():\n            self._to_come",
    ),
    Mutant(
        "keys of an encoder are made by no product",
        _CALLS,
        '"out_features": out_features}, num_layers',
        '"out_features": out_features}, 0',
    ),
    Mutant("encoders read causally", _ENCODER_COST, '"window": 0, "causal": 0}', '"window": 0}'),
    Mutant("convolutions of sound have one row per vector", _ENCODER_COST, "found.d_model, 2.0)", "found.d_model, 1.0)"),
    Mutant("norms of an encoder are one launch", _ENCODER_COST, 'self.norm == "layer" else', "True else"),
    Mutant("sums of an encoder are free", _ENCODER_COST, "2 * depth, hidden * 3", "0 * depth, hidden * 3"),
    Mutant("rotations of a tower are free", _TOWERS_FILE, "passes=12,", "passes=0,"),
    Mutant("a gate of an encoder is free", _ENCODER_COST, "* (1 + self.gated), Product(inner", ", Product(inner"),
    Mutant("blocks of an encoder may be others'", _IMAGE_MIRROR, "held.count(block) == 1 for", "True for"),
    Mutant("blocks of an encoder may be too many", _IMAGE_MIRROR, "len(table) == -(-end // size)", "len(table) >= -(-end // size)"),
    Mutant("blocks of an encoder grow", _IMAGE_MIRROR, "assert group not in self._cross, f", "assert True, f"),
    Mutant("windows see everything", _TOWERS_FILE, "min(side, end - i)", "side"),
    Mutant("contexts of nothing are measured", _COST_MODEL, "[max(context, 1) for context in ctx_lens]", "list(ctx_lens)"),
    Mutant("the largest image is any", _SIZED_FILE, "return max(fitting, key", "return min(fitting, key"),
    Mutant("a thumbnail is left out", _SIZED_FILE, "        count += count > 1\n", ""),
    Mutant("images repeat as one", _PICTURES_FILE, "self._known[name] = self._drawn(name,", "self._known[name] = self._drawn(0,"),
    Mutant(
        "a server is shown other images", _PICTURES_FILE, "picture(self._config.seed, name, *", "picture(self._config.seed, 0, *"
    ),
    Mutant("text before an image is sent again", _BODIES, "        start = image.start\n", ""),
    Mutant("text behind images is left out", _BODIES, "return parts + _piece(ids[start:], tokenizer)", "return parts"),
    Mutant("two images for one", _IMAGE_PLACES, "if self._is_single and count > 1:", "if False:"),
    Mutant("texts begin behind images", _IMAGE_PROMPTS, "self._encode if self._model_type == COGVLM else encode", "encode"),
    Mutant(
        "placeholders that are spelled stay broken",
        _IMAGE_PROMPTS,
        "        parts = text.split(BREAK)\n",
        "        parts = [text]\n",
    ),
    Mutant("squares are made in straight lines", _SQUARES, "Resampling.BICUBIC", "Resampling.BILINEAR"),
    Mutant("what is above 255 is white", _IMAGES, 'if image.mode.startswith("I;16"):', "if False:"),
    Mutant("numbers are colors", _IMAGES, 'if image.mode in ("I", "F"):', "if False:"),
    Mutant("a tower that fails ends all requests", _IMAGE_EMBEDDINGS, "if not self._is_alone or", "if True or"),
    Mutant(
        "images without embeddings are seen",
        _IMAGE_ROWS,
        "_, start, end in self._encoded(rows)",
        "_, start, end in self._overlaps(rows)",
    ),
    Mutant("embeddings of another number", _IMAGE_EMBEDDINGS, "if len(found) != image.count:", "if False:"),
    Mutant("a tower that failed is not asked again", _IMAGE_EMBEDDINGS, "        self._errors.clear()\n", ""),
    Mutant("sites are public", f"{_SERVER}image_urls.py", "found.is_site_local)", "False)"),
    Mutant("white is below the image", _CROPS, "(0, (rows * SIDE - height) // 2)", "(0, 0)"),
    Mutant("images of a size are one", _IMAGE_PROMPTS, " + np.ascontiguousarray(value).tobytes()", ""),
    Mutant("a prompt ends with text", _IMAGE_ROWS, "begin < own.images[-1].end else", "begin < own.images[-1].start else"),
    Mutant("pairs turn by time alone", _ANGLES, "positions[self.axes].T", "positions[self.axes * 0].T"),
    Mutant("hosts lead to private addresses", f"{_SERVER}image_urls.py", "if not is_public(address)]:", "if False]:"),
    Mutant("hosts lead elsewhere", f"{_SERVER}image_urls.py", "if response.status != 200:", "if response.status >= 400:"),
    Mutant("messages of texts alone", f"{_SERVER}embeddings.py", "if not call.inputs.rules.has_towers:", "if False:"),
    Mutant("towers generate", _CATALOG, '    if model_type in TOWERS:\n        return ("embed",)\n', ""),
    Mutant("sparse tensors pass", _TORCH_FILE, " and found.layout == torch.strided", ""),
    Mutant("tensors without numbers pass", _TORCH_FILE, ' and found.device.type == "cpu"', ""),
    Mutant(
        "a simulation of chunks that cannot be",
        _SHAPE,
        "    architecture.check_chunks(config.cache.block_size, model.max_model_len)\n",
        "",
    ),
    Mutant("sizes that do not fit are no error of ours", _LIBRARY_MODEL, ', "ignore_mismatched_sizes": True}', "}"),
    Mutant("slopes of float32", f"{_BINDING}attention.py", "slopes.bfloat16().float()", "slopes.float()"),
    Mutant("GritLM embeds with its window", f"{_FAMILIES}llama.py", '{"sliding_window": None} if _is_grit(config) else {}', "{}"),
    Mutant("RoBERTa begins at the padding", _ENCODERS, 'int(config["pad_token_id"]) + 1', 'int(config["pad_token_id"])'),
    Mutant("a two-sided window of a token less", _ENCODERS, "// 2 + 1,", "// 2,"),
    Mutant("flags may be words", _NATIVE, '("true or false", _is_flag, flags)', '("a flag", lambda found: True, flags)'),
    Mutant("layers without a word rotate", _NATIVE, '("layer_types", "no_rope_layers"):', '("layer_types",):'),
    Mutant("the best two of one expert", _NATIVE, " and size < 2)", " and size < 1)"),
    Mutant("halves of pairs rotate", _ROPE, "if rotary_dim % 2 or not", "if not"),
    Mutant("an index leads anywhere", _HUB, ' or ".." in Path(file).parts', ""),
    Mutant("shards are missed when they are read", _TENSOR_FILES, "if not (folder / file).is_file():", "if False:"),
    Mutant("the last of two tensors wins", _WEIGHTS, "if ours in where:", "if False:"),
    Mutant("command-r stops early", f"{_FAMILIES}cohere.py", 'config.get("model_max_length") or ', ""),
    Mutant(
        "one dense layer too many",
        f"{_FAMILIES}deepseek.py",
        'layer >= config["first_k_dense_replace"]',
        'layer > config["first_k_dense_replace"]',
    ),
    Mutant("any topk_method passes", f"{_FAMILIES}deepseek.py", "if method not in _V2_METHODS:", "if False:"),
    Mutant("falcon has many KV heads", f"{_FAMILIES}falcon.py", '1 if config["multi_query"] else listed', "listed"),
    Mutant(
        "released names of biases are not read",
        f"{_FAMILIES}internlm.py",
        'config.get("qkv_bias", config["attention_bias"])',
        'config["attention_bias"]',
    ),
    Mutant(
        "windows where none are used",
        f"{_FAMILIES}llama.py",
        'bool(config["use_sliding_window"]) and not rotates_most',
        "not rotates_most",
    ),
    # Several ranks.
    Mutant("each rank has KV heads of its own", _PARTS, "rank.rank // copies * count", "rank.rank * count"),
    Mutant("KV heads go round the ranks", _PARTS, "rank.rank // copies * count", "rank.rank % (rank.size // copies) * count"),
    Mutant("all ranks have the first experts", _PARTS, "start = rank.rank * count if count < total else 0", "start = 0"),
    Mutant("every rank adds the bias", _LINEAR, '{**part.tensors, "bias": None}, params=', "part.tensors, params="),
    Mutant("every rank embeds the first words", _BINDER, '{"vocab_start": start}', '{"vocab_start": 0}'),
    Mutant(
        "every rank has the slopes of the first",
        f"{_BINDING}attention.py",
        "parallel.tp.size)[self._binder.parallel.tp.rank]",
        "parallel.tp.size)[0]",
    ),
    Mutant("every rank adds the bias of experts", _WEIGHTS, "if w2.share is not None and w2.share[1].rank and", "if False and"),
    Mutant(
        "what another stage sampled is not read", _ROWS, "unbind(0)\n            self.tokens[seat, position] = token", "unbind(0)"
    ),
    Mutant(
        "a stage passes no residual on",
        _DECODER,
        "torch.zeros_like(x) if residual is None else residual.contiguous()",
        "torch.zeros_like(x)",
    ),
    Mutant(
        "blocks of scales are cut like groups",
        f"{_QUANTIZATION}shares.py",
        "FP8_BLOCK if blocks and tensor",
        "0 if blocks and 0 > tensor",
    ),
    Mutant("shares begin amid words", f"{_QUANTIZATION}scheme.py", "if own.start % values or (", "if own.start < 0 or ("),
    Mutant(
        "several ranges of rows stand side by side",
        f"{_QUANTIZATION}scheme.py",
        "concatenated(pieces, by_rows)",
        "concatenated(pieces, 1 - by_rows)",
    ),
    Mutant("act-order is cut as it lies", f"{_QUANTIZATION}gptq.py", "raise WholeNeeded  #", "pass  #"),
    Mutant(
        "groups of a share are counted from 0",
        f"{_QUANTIZATION}gptq.py",
        "torch.arange(module.share[1].start, module.share[1].stop",
        "torch.arange(0, module.columns",
    ),
    Mutant(
        "any failures of all ranks are one",
        f"{_DISTRIBUTED}executor.py",
        " or len({failure.text for failure in failures.values()}) > 1",
        "",
    ),
    Mutant(
        "an interrupt amid messages is nothing",
        f"{_DISTRIBUTED}executor.py",
        "except BaseException as interrupt:",
        "except GeneratorExit as interrupt:",
    ),
    Mutant("the port stays taken", f"{_DISTRIBUTED}rendezvous.py", "        self._store = None", "        pass"),
    Mutant(
        "a forked copy ends the workers",
        f"{_DISTRIBUTED}workers.py",
        'are not its own."""\n        if self._process_id != os.getpid():',
        'are not its own."""\n        if False:',
    ),
    Mutant(
        "the cache is as large as the largest of a rank",
        f"{_DISTRIBUTED}executor.py",
        "self.num_blocks = min(",
        "self.num_blocks = max(",
    ),
    Mutant("weights are those of one rank", f"{_DISTRIBUTED}executor.py", "self.weight_bytes = sum(", "self.weight_bytes = max("),
    Mutant(
        "one step in flight for all stages",
        f"{_DISTRIBUTED}executor.py",
        'max(facts[0]["in_flight_steps"], self.num_stages)',
        'facts[0]["in_flight_steps"]',
    ),
    Mutant("other versions may serve", f"{_DISTRIBUTED}executor.py", "refuse_versions(own, rank, message.versions)", "pass"),
    Mutant("other configurations may serve", f"{_DISTRIBUTED}executor.py", "            refuse_differences(config, built)\n", ""),
    Mutant("old outputs are kept", f"{_DISTRIBUTED}executor.py", "            del self._outputs[old]", "            pass"),
    Mutant(
        "failures of steps that were given up are passed over",
        f"{_DISTRIBUTED}executor.py",
        "if failed <= step_id)",
        "if failed == step_id)",
    ),
    Mutant(
        "a folder is a package", f"{_DISTRIBUTED}kinds.py", "found is not None and found.origin is not None:", "found is not None:"
    ),
    Mutant("bars leave semaphores", "framework/logs.py", "    tqdm.set_lock(threading.RLock())", "    tqdm.get_lock()"),
    Mutant("threads that wait are left", f"{_DISTRIBUTED}launchers/threads.py", "            self._abort(", "            str("),
    Mutant(
        "an engine that idles knows nothing of its ranks",
        _PROCESS,
        "            if has_ranks and not engine.has_unfinished():",
        "            if False:",
    ),
    Mutant(
        "what lies before a sign of life is lost",
        f"{_DISTRIBUTED}executor.py",
        "            self._receive(remaining_s)\n        self._tell",
        "            self._workers.receive(self._workers.wait(remaining_s))\n        self._tell",
    ),
    Mutant(
        "who gave no sign of life lives",
        f"{_DISTRIBUTED}workers.py",
        "        if self._silent:\n            raise",
        "        if False:\n            raise",
    ),
    Mutant(
        "masks are for the latest step",
        f"{_DISTRIBUTED}worker.py",
        "if not self._steps or self._steps[-1][0] != message.step_id or",
        "if not self._steps or",
    ),
    Mutant(
        "experts that did not move are no loss",
        f"{_DISTRIBUTED}worker.py",
        "self._fail(NO_STEP, lost)",
        "self._fail(NO_STEP, error)",
    ),
    Mutant(
        "steps are sent before what was sent is sampled",
        f"{_DISTRIBUTED}lockstep.py",
        "while any(self._queues) and not self._unsampled:",
        "while any(self._queues):",
    ),
    Mutant(
        "statistics are of one scheduler",
        _LOCKSTEP,
        "total_stats([engine.stats() for engine in self.engines])",
        "self.engines[0].stats()",
    ),
    Mutant("sums of times are of one scheduler", _LOCKSTEP, "one.total + other.total", "one.total"),
    Mutant("one scheduler's wait is that of all", _LOCKSTEP, "all(engine.is_waiting for", "any(engine.is_waiting for"),
    Mutant("caches of some are forgotten", _LOCKSTEP, "        if self.kv_usage:\n            return False\n", ""),
    Mutant("ranks stay in their groups", _RANK, "        dist.destroy_process_group()", "        pass"),
    Mutant("one rank may have no device", _RANK, "torch.cuda.device_count()) < size", "torch.cuda.device_count()) < 1"),
    Mutant("only one of those that wait is woken", _GROUP, "            mailbox.put(None)  # for", "            pass  # for"),
    # Adapters.
    Mutant(
        "an adapter keeps what was in its slot beyond its rank",
        _LORA_SLOTS,
        "target.narrow(dim, rank, target.shape[dim] - rank).zero_()",
        "pass",
    ),
    Mutant("parts that an adapter lacks keep what was in its slot", _LORA_SLOTS, "tensor[slot].zero_()", "pass"),
    Mutant("ranks have the first columns of A", _LORA_SLOTS, "a[..., columns.start : columns.stop]", "a[..., : len(columns)]"),
    Mutant("an adapter is gone when one of two is dropped", _LORA_SLOTS, "if not self._holds[key]:", "if True:"),
    Mutant("adapters of an embedding are not scaled", _LORA_LAYERS, "scale = self.scale[meta.index]", "scale = 1"),
    Mutant(
        "who has its grammar waits for nothing else",
        _MATCHERS,
        "        self.num_served[job.backend] += 1\n        self.compiler.release",
        "        self.num_served[job.backend] += 1\n        request.is_ready = None\n        self.compiler.release",
    ),
    Mutant("the index of one row with drafts is not contiguous", _GRAPHS, ".contiguous().view(-1)", ".reshape(-1)"),
    Mutant(
        "reading adapters has threads of its own", _ADAPTER_HOST, "self._thread.submit(torch.set_num_threads, 1).result()", "pass"
    ),
    Mutant(
        "steps without adapters compute them", _GRAPHS, "self._replays[self._lora_slots(rows) is not None]", "self._replays[True]"
    ),
    Mutant("every rank adapts every word", _LORA_LAYERS, " * scale * held[:, None]", " * scale"),
    Mutant("logits have the adapters of the first tokens", _BATCHES, "of_tokens[logit_tokens]", "of_tokens[: len(logit_tokens)]"),
    Mutant(
        "a request without adapter has that of the one before",
        _ROWS,
        "self.lora_slots[request.seat] = request.lora_slot",
        "self.lora_slots[request.seat] = max(request.lora_slot, self.lora_slots[request.seat])",
    ),
    Mutant("recordings know no adapters", _GRAPHS, "self._replays[self._lora_slots(rows) is not None]", "self._replays[False]"),
    Mutant(
        "recordings have the adapters of the first seats", _GRAPHS, "requests.lora_slots[rows.seats]", "requests.lora_slots[:count]"
    ),
    Mutant("prompt logprobs know no adapters", _RUNNER, "None if index is None else LoraMeta(index, [slot])", "None"),
    # Experts that lie anywhere, and schedulers that take their steps together.
    Mutant("replicas share no load", _EXPERT_MAP, "sum(loads[e] / counts[e] for e", "sum(loads[e] for e"),
    Mutant("a rank may have an expert more often than ranks there are", _EXPERT_MAP, "if counts[expert] < ranks:", "if True:"),
    Mutant("a map that is as good moves experts", _EXPERT_MAP, "min([current, *found] if", "min([*found, current] if"),
    Mutant("loads of another model are taken", _EXPERT_MAP, "if sizes != dict(counts) or any(", "if any("),
    Mutant(
        "experts stay where they were",
        _EXPERT_BALANCER,
        "            self.plan.rebind(self.layers[number].experts, partial(self.load, number, wanted))",
        "            pass",
    ),
    Mutant(
        "where experts went is not known", _EXPERT_BALANCER, "            placement.place(wanted.slots[number])", "            pass"
    ),
    Mutant("loads are never forgotten", _EXPERT_BALANCER, "            placement.loads.zero_()", "            pass"),
    Mutant("the first replica serves all", _EXPERTS, "rows % self.counts[chosen]", "0 * rows"),
    Mutant(
        "a rank without tokens stays away", _EXPERTS, "        if self.exchange is not None:  # else", "        if False:  # else"
    ),
    Mutant("schedulers number the ranks' experts alike", f"{_BINDING}experts.py", "ep.rank * part.num_experts if", "0 if"),
    Mutant(
        "ranks of a stage add nothing up where schedulers share experts",
        f"{_BINDING}experts.py",
        "    if tp.size > 1:\n        found.reduce",
        "    if tp.size > 1 and binder.lockstep is None:\n        found.reduce",
    ),
    Mutant(
        "the fullest is the first",
        f"{_DISTRIBUTED}lockstep.py",
        "max(sum(step.num_tokens) for step in inputs)",
        "sum(inputs[0].num_tokens)",
    ),
    Mutant(
        "steps have the number of all",
        f"{_DISTRIBUTED}lockstep.py",
        "return replace(output, step_id=self.step.step_id)",
        "return output",
    ),
    Mutant("masks go to whoever comes first", f"{_DISTRIBUTED}worker.py", " or message.scheduler != self._place.dp_rank:", ":"),
    Mutant(
        "every rank takes the first scheduler's step",
        f"{_DISTRIBUTED}worker.py",
        "message.inputs[self._place.dp_rank]",
        "message.inputs[0]",
    ),
    Mutant(
        "outputs come of one scheduler",
        f"{_DISTRIBUTED}messages.py",
        "self.rank % self.num_own == self.num_own - self.tp",
        "self.rank == self.size - self.tp",
    ),
    Mutant(
        "loads are those of the first scheduler",
        f"{_DISTRIBUTED}experts.py",
        "if place.tp_rank == 0 else ():",
        "if place.rank == 0 else ():",
    ),
    Mutant(
        "loads count once for each rank of a stage",
        f"{_DISTRIBUTED}experts.py",
        "if place.tp_rank == 0 else ():",
        "if True else ():",
    ),
    Mutant("experts never move by themselves", f"{_DISTRIBUTED}experts.py", "self._num_steps % self._every == 0", "False"),
    Mutant("seeds by the scheduler", _LOCKSTEP, "        engine.num_added = self._num_added  # a", "        pass  # a"),
    Mutant(
        "an id may run twice", _LOCKSTEP, "if any(request_id in engine.processor.groups for engine in self.engines):", "if False:"
    ),
    Mutant(
        "requests of other schedulers outlive the device",
        _LOCKSTEP,
        "if (lost := self.errored) is not None:\n            outputs",
        "if False:\n            outputs",
    ),
    Mutant(
        "ranks have the first one's rows back", f"{_EXCHANGE}torch.py", ".chunk(group.size)[group.rank]", ".chunk(group.size)[0]"
    ),
    Mutant("falcon 40b has one norm", f"{_FAMILIES}falcon.py", '(config["num_ln_in_parallel_attn"] or 2)', "1"),
    Mutant(
        "a slot is given away under its requests", _ADAPTER_SLOTS, "slot is not None and not self._users(slot)", "slot is not None"
    ),
    Mutant(
        "requests join those of a slot that others wait for",
        _ADAPTER_SLOTS,
        "return adapter.weights.slot not in self._claims.values()",
        "return True",
    ),
    Mutant("who waits is asked in every step", _ADAPTERS, "num_waiting if num_waiting == self._num_refused else None", "None"),
    Mutant("all slots are emptied at once", _ADAPTER_SLOTS, "(empties and weights.users)", "False"),
    Mutant("the slot with most left is emptied", _ADAPTER_SLOTS, "cost = (2, left)", "cost = (2, -left)"),
    Mutant("adapters share cached prefixes", _ADAPTERS, "        request.extra_keys = keys\n", "        pass\n"),
    Mutant("what was looked up for other weights is kept", _ADAPTERS, "        request.block_hashes.clear()\n", "        pass\n"),
    Mutant(
        "preempted requests lose their slot",
        _ADAPTERS,
        "if adapter.weights is not None and request in adapter.weights.users:",
        "if False:",
    ),
    Mutant("the host holds more than it may", _ADAPTERS, "len(self._weights) + len(self._reading) < self._num_host", "True"),
    Mutant("what was used last leaves the host first", _ADAPTERS, "self._drop(min(idle", "self._drop(max(idle"),
    Mutant(
        "slots that a failed step was to fill pass for filled",
        _ADAPTER_SLOTS,
        "            self.empty(slot)\n        return users",
        "            pass\n        return users",
    ),
    Mutant(
        "an adapter in use is removed",
        _ADAPTERS,
        "        if adapter.requests:\n            raise",
        "        if False:\n            raise",
    ),
    Mutant(
        "of equal adapters the host keeps two", _ADAPTERS, "self._executor.drop_adapter(loaded.key)  # it holds", "pass  # it holds"
    ),
    Mutant("new weights in place are the old ones", _ADAPTERS, "known is None or request.load_inplace or", "known is None or"),
    Mutant("an adapter that could not be read never can be", _ADAPTERS, " or known.failure else known", " else known"),
    Mutant(
        "requests are no use of an adapter",
        _ADAPTERS,
        "        weights.last_used = next(self._clock)\n        if not self._slots",
        "        if not self._slots",
    ),
    Mutant(
        "adapters that are waited for leave the host",
        _ADAPTERS,
        "weights.is_pinned or weights.adapters & self._asked",
        "weights.is_pinned",
    ),
    Mutant("new weights in place are not pinned", _ADAPTERS, "adapter.pinned = before.pinned", "adapter.pinned = False"),
    Mutant("pinned adapters lose their slots", _ADAPTER_SLOTS, "(weights.is_pinned or (empties", "((empties"),
    Mutant("slots stay in use after a failure", _ADAPTERS, "            weights.users.clear()\n", "            pass\n"),
    Mutant(
        "an adapter has another slot's number",
        _ADAPTER_SLOTS,
        "self._loads.append((slot, weights",
        "self._loads.append((0, weights",
    ),
    Mutant(
        "one of several engines keeps what others could not read",
        _SERVED_ADAPTERS,
        "                    await self._engine.remove_lora(lora_id)\n",
        "                    pass\n",
    ),
    Mutant("a matrix may come twice", _PEFT, 'match["matrix"]), name)) != name:', 'match["matrix"]), name)) is None:'),
    Mutant("ranks expand their part of what is shrunk", _LORA_LAYERS, "        if self.reduce is not None:", "        if False:"),
    Mutant("rsLoRA scales as LoRA", _PEFT_CONFIG, "rank**0.5 if self.rslora else rank", "rank"),
    Mutant("patterns of ranks are of whole names", _PEFT_CONFIG, 'rf"(.*\\.)?({pattern})$"', 'rf"({pattern})$"'),
    Mutant("rows of B keep the order of the disk", _PEFT, "            b = b[part.rows_on_disk]\n", "            pass\n"),
    Mutant("the key is of A alone", _PEFT, "(one.a, one.b, one.scale):", "(one.a,):"),
    Mutant("any weights beside an adapter pass", _PEFT, "        if not same:\n", "        if False:\n"),
    Mutant("an adapter may lack modules", _PEFT_CONFIG, "        if missing:\n", "        if False:\n"),
    Mutant(
        "links lead out of the folder",
        _SERVED_ADAPTERS,
        "if not all(file.is_relative_to(self._folder) for file in files):",
        "if False:",
    ),
    Mutant(
        "adapters are left on ranks that could read them",
        f"{_DISTRIBUTED}questions.py",
        "            self._send(DropAdapter(one.key, [rank]))",
        "            pass",
    ),
    Mutant(
        "the router outlives a replica",
        _REPLICAS,
        "self._routed_to, self._router = living, ROUTERS[",
        "self._routed_to, _ = living, ROUTERS[",
    ),
    Mutant("priorities end at the front", _FRONT, "Add(given, complete, priority, ", "Add(given, complete, 0, "),
    Mutant("replicas share a port", _BUILD, "parallel.port + index if", "parallel.port if"),
    Mutant("any number of processes", _REPLICAS, "        check_processes(config)\n", ""),
    Mutant(
        "a pipe that broke is an error of the step",
        f"{_DISTRIBUTED}executor.py",
        "        except OSError:\n            while True:",
        "        except OSError:\n            raise\n            while True:",
    ),
    Mutant(
        "last words are lost",
        f"{_DISTRIBUTED}workers.py",
        "if worker.pipe in ready:  # first",
        "if worker.pipe in ready and worker.sentinel not in ready:  # first",
    ),
    Mutant("every rank answers", f"{_DISTRIBUTED}worker.py", "asked and self._place.is_output", "asked"),
    Mutant(
        "no ping while it idles",
        f"{_DISTRIBUTED}executor.py",
        "while pipe not in self._receive(self._workers.ping_s, pipe):\n            self._ping_if_due()",
        "while pipe not in self._receive(self._workers.ping_s, pipe):\n            pass",
    ),
    Mutant(
        "ranks outlive an executor that was forgotten",
        f"{_DISTRIBUTED}executor.py",
        "        weakref.finalize(self, self._workers.kill)\n",
        "",
    ),
    Mutant(
        "who broke off a message has ended",
        f"{_DISTRIBUTED}workers.py",
        'except BlockingIOError:\n                    raise Silence(f"{self.named([rank])} broke off',
        'except TimeoutError:\n                    raise Silence(f"{self.named([rank])} broke off',
    ),
    Mutant(
        "a start may take as long as a step",
        f"{_DISTRIBUTED}executor.py",
        "self._shake_hands(parallel.start_timeout_s)",
        "self._shake_hands(parallel.step_timeout_s)",
    ),
    Mutant("sources may differ", f"{_DISTRIBUTED}handshake.py", "digest.update(path.read_bytes())", "pass"),
    Mutant("Triton may differ", f"{_DISTRIBUTED}handshake.py", '("torch", "triton", "numpy")', '("torch", "numpy")'),
    Mutant("Python may differ", f"{_DISTRIBUTED}handshake.py", '"python": platform.python_version(), ', ""),
    Mutant("kernels of other versions may differ", f"{_DISTRIBUTED}handshake.py", '("choice", "version"))', '("choice",))'),
    Mutant(
        "the second rank alone is compared",
        f"{_DISTRIBUTED}handshake.py",
        "_differences(built[0].facts, found.facts)",
        "_differences(built[0].facts, built[1].facts)",
    ),
    Mutant(
        "schedulers have no peers",
        f"{_DISTRIBUTED}messages.py",
        "range(self.rank % self.num_own, self.size, self.num_own)",
        "range(self.rank % self.num_own, self.size, self.tp)",
    ),
    Mutant("ranks of every engine begin with GPU 0", _RANK, "(config.parallel.first_device + place.rank) %", "place.rank %"),
    Mutant(
        "collectives are not checked",
        f"{_BINDING}checks.py",
        "    if tp.size > 1:\n        summed",
        "    if False:\n        summed",
    ),
    Mutant("collectives that nobody calls are passed over", f"{_BINDING}checks.py", "plan.check_named({op", "print({op"),
    Mutant("products of ranks are not checked", f"{_BINDING}checks.py", "type(scheme) is Unquantized:", "False:"),
    Mutant("ranks sum up twice", _LAYER_BINDER, "                summed.reduce = None\n", ""),
    Mutant("a sum that is left to a norm is not checked", f"{_BINDING}checks.py", "if whole.norms_sums:", "if False:"),
    Mutant("the exchange of experts is not checked", f"{_BINDING}checks.py", "if parallel.ep.size > tp.size:", "if False:"),
    Mutant(
        "ordered inputs are cut",
        f"{_QUANTIZATION}shares.py",
        "if found is not None and found.orders_inputs(",
        "if False and found.orders_inputs(",
    ),
    Mutant("a request's first tokens find the states of who was there", _BATCHES, "rows.first == 0)", "rows.first < 0)"),
    Mutant("states of padding are somebody's", _GRAPHS, ".masked_fill_(row_seats == padding_seat, -1)", ".clamp_max_(size - 1)"),
    Mutant("states are beside what memory there is", _CACHE_MEMORY, "(available - states) // each", "available // each"),
    Mutant("the least sure tokens are settled", _DENOISING, "key=confidences.__getitem__)", "key=lambda i: -confidences[i])"),
    Mutant("a threshold is no more than a wish", _DENOISING, "if len(sure) < self._least:", "if True:"),
    Mutant(
        "a pass settles one token at least, whatever is asked",
        _DENOISING,
        "-(-canvas_size // (self.max_passes or canvas_size))",
        "1",
    ),
    Mutant("a token at the threshold is settled", _DENOISING, "] > self._threshold]", "] >= self._threshold]"),
    Mutant("of equals the last is settled", _DENOISING, "nlargest(self._least, masked,", "nlargest(self._least, masked[::-1],"),
    Mutant(
        "settled tokens are masks again",
        _DENOISING,
        "return known[first:] + request.settled",
        "return known[first:] + [self._mask] * len(request.settled)",
    ),
    Mutant("what is settled settles again", _DENOISING, "enumerate(settled) if token == self._mask]", "enumerate(settled)]"),
    Mutant("tokens of no number are output", _DENOISING, "tokens[index] == FAILED_ROW", "tokens[index] == -7"),
    Mutant(
        "log-probabilities are told from the first place on",
        _DENOISING,
        "request.told |= {start + index:",
        "request.told |= {index:",
    ),
    Mutant("steps ahead pass over canvases", _RUN_AHEAD, "        or scheduler.denoising is not None\n", ""),
    Mutant("replicas generate token by token", _BUILD, "(first.pooling, first.denoising)", "(first.pooling, None)"),
    Mutant("made-up passes are as many for all", _PSEUDO, "< self._mean - least)", "< -1)"),
    Mutant(
        "made-up tokens are settled in the order of their places",
        _PSEUDO,
        ".argsort(1).argsort(1)",
        ".argsort(1) * 0 + np.arange(self.canvas_size)",
    ),
    Mutant("a made-up mask is output", _PSEUDO, "return tokens if mask is None else", "return tokens if True else"),
    Mutant(
        "a new request goes on with its seat's made-up passes",
        _PSEUDO,
        "self._starts[[request.seat for request in new]] = -1",
        "pass",
    ),
    Mutant("the first made-up pass is sure", _PSEUDO, "(nth < self.num_passes(states, starts))", "(nth < 0)"),
    Mutant(
        "the mirror lets others read canvases with masks",
        _CANVAS_MIRROR,
        "hash((before, tuple(part), said))",
        "hash((before, start))",
    ),
    Mutant("simulated canvases see only what is before", _CALLS, "a.causal and a.diffusion is None", "a.causal"),
    Mutant("simulated passes gather no log-probabilities", _CALLS, '(*drawn_by, "gather_logprobs")', "drawn_by"),
    Mutant("simulated canvases stand in one row", _ATTENTION_ROWS, "np.diff(ends, prepend=0))", "np.diff(ends * 0, prepend=0))"),
    Mutant("the first canvas is a decode", _ATTENTION_ROWS, "& (first > 0)", "& (first >= 0)"),
    Mutant(
        "logits of canvases take no memory",
        _CACHE_MEMORY,
        "config.scheduler.max_num_seqs * canvas_size",
        "config.scheduler.max_num_seqs",
    ),
    Mutant("canvases may be cut", _DENOISING, "return count // self.canvas_size * self.canvas_size", "return count"),
    Mutant(
        "LLaDA2 chooses experts without their bias", _DIFFUSION, '"bias": config["moe_router_enable_expert_bias"]', '"bias": False'
    ),
    Mutant("queries and keys of LLaDA2 have no norms", _DIFFUSION, '    qk_norm="head",\n', ""),
    Mutant("the least sure tokens are taken", _REDRAWING, "np.argsort(entropy,", "np.argsort(-entropy,"),
    Mutant("the largest entropy counts", _REDRAWING, "sums - entropy[surest] <=", "sums <="),
    Mutant("a stable canvas is done, sure or not", _REDRAWING, "(is_stable and entropy.mean()", "(is_stable or entropy.mean()"),
    Mutant("one stable pass will do", _REDRAWING, "deque(maxlen=self._redraws.num_stable)", "deque(maxlen=1)"),
    Mutant("what is not taken stays", _REDRAWING, "canvas.tokens = self._random(request, canvas.num_passes)", ""),
    Mutant("all passes have one random canvas", _REDRAWING, "<< 64 | num_passes", "<< 64"),
    Mutant("all requests have one random canvas", _REDRAWING, "key=request.params.seed & _SEED_BITS", "key=0"),
    Mutant("a canvas may be cut", _REDRAWING, "min(count, request.num_tokens - first)", "count"),
    Mutant("tokens of no number are taken", _REDRAWING, "if FAILED_ROW in found:", "if False:"),
    Mutant("a new canvas reads what was said of the last", _CANVASES, ", 0).flatten(0, 1)", ", 1).flatten(0, 1)"),
    Mutant(
        "a new request goes on with its seat's passes",
        _CANVASES,
        "        self._starts[[new.seat for new in step.new]] = -1\n",
        "        pass\n",
    ),
    Mutant("all passes are drawn alike", _CANVASES, "<< _PASS_BITS", "& 0"),
    Mutant("a window is narrower for canvases", _ATTENTION_ROWS, "- (window - 1), 0)", "- window + 2, 0)"),
    Mutant("simulated canvases attend once", _PLACED_LIBRARY, "if layer.canvases:", "if False:"),
    Mutant("simulated canvases see beyond windows", _PLACED_LIBRARY, "windowed=layer.spec.window is not None", "windowed=False"),
    Mutant("what canvases see in windows is copied for nothing", _SIMULATED, "if (seen < ends).any():", "if False:"),
    Mutant("gathers read all of their tables", _DRY_RUN, "read[0] = written[0]", "pass"),
    Mutant("scatters write all of their tables", _DRY_RUN, "read, written = read[1:], read[-1:]", "pass"),
    Mutant("the library's experts take no time", _DRY_RUN, "module.register_forward_pre_hook(self._experts)", "pass"),
    Mutant("views take time", _DRY_RUN, "func.is_view or packet", "packet"),
    Mutant("logits take no time", _DRY_RUN, "both - tokens, taken", "Counter(), taken"),
    Mutant("tied weights are held twice", _DRY_RUN, "self.storages[storage._cdata]", "self.storages[id(weight)]"),
    Mutant("canvases see all in every layer", _CANVASES, "if not first.any():", "if True:"),
    Mutant("canvases have the factors of known tokens", _DIFFUSION_GEMMA, "redrawn.expand(", "known.expand("),
    Mutant(
        "logits have no cap",
        _DIFFUSION_GEMMA,
        "torch.tanh(self._head(hidden).float() / self._softcap)",
        "(self._head(hidden).float() / self._softcap)",
    ),
    Mutant("more experts are taken than there are", _REDRAWS, 'config["top_k_experts"] > config["num_experts"]', "False"),
    Mutant("logits may have no cap", _REDRAWS, 'check_positive(config, "final_logit_softcapping")', "pass"),
    Mutant("weights that are not shared are passed over", _REDRAWS, 'config.get("tie_word_embeddings") is False', "False"),
    Mutant("rows of prefixes are in no plan", _CACHE_MEMORY, "max_num_seqs + config.cache.state_snapshots", "max_num_seqs"),
    Mutant("a prefix is found without its states", _MANAGER, "shorter = snapshots.longest(hashes, limit)", "shorter = limit"),
    Mutant("a request starts from the first states", _MANAGER, "block_hashes[num_hit - 1]) if", "block_hashes[0]) if"),
    Mutant("prompts pass where states are to be kept", _SCHEDULER, "_until(hit.snapshot_ends, start, ", "_until((), start, "),
    Mutant("later chunks pass where states are to be kept", _SCHEDULER, "_until(request.snapshot_ends, ", "_until((), "),
    Mutant("states of a step in flight are found", _SNAPSHOTS, "if made[0] <= num_computed]", "]"),
    Mutant("the latest used states go first", _SNAPSHOTS, "self._kept.popitem(last=False)", "self._kept.popitem()"),
    Mutant(
        "states of a request that is gone are lost",
        _SNAPSHOTS,
        "self._blank += [row for _, _, row in self._making.pop(request, ())]",
        "self._making.pop(request, ())",
    ),
    Mutant(
        "a reset remembers what prompts came", _SNAPSHOTS, "self._kept.clear()\n        self._seen.clear()", "self._kept.clear()"
    ),
    Mutant(
        "windows do not reach back from where states are kept",
        _MANAGER,
        "settled, limit = settled and shorter == limit, shorter\n        blocks",
        "limit = shorter\n        blocks",
    ),
    Mutant(
        "states of a step move from one row",
        _RUNNER,
        "            for layer in self._states:",
        "            src = src[:1].expand(len(src)).contiguous()\n            for layer in self._states:",
    ),
    Mutant("states that are read are not used", _SNAPSHOTS, "        self._kept.move_to_end(key)\n", ""),
    Mutant("states are kept where no prompts part", _SNAPSHOTS, "sorted({seen, len(hashes)})", "[len(hashes)]"),
    Mutant("states of a prefix do not come to the seat", _RUNNER, "if new.snapshot >= 0])", "if new.snapshot > 10**6])"),
    Mutant(
        "states before the step are kept",
        _RUNNER,
        "            hidden = self.model.forward(batch)\n            self._copy_states(kept)\n",
        "            self._copy_states(kept)\n            hidden = self.model.forward(batch)\n",
    ),
    Mutant("a fork shares states", _MANAGER, "if self._has_states or self._cross or", "if self._cross or"),
    Mutant("rates and decays change places", _MIXERS, "rate, decay = ", "decay, rate = "),
    Mutant("queries gate themselves", _ATTENTION, "heads[:, 1:-keys:2]", "heads[:, :-keys:2]"),
    Mutant("a fork ends the ranks as it exits", f"{_DISTRIBUTED}launchers/processes.py", "        keep_from_forks(process)\n", ""),
    Mutant("a fork ends the engine as it exits", _CLIENT, "if not self._is_forked:", "if True:"),
    Mutant(
        "a fork waits for an engine that hears nothing",
        _CLIENT,
        "        if self._is_forked:\n            reason",
        "        if False:\n            reason",
    ),
    Mutant("replicas share blocks of adapters", _REPLICAS, "if add.lora_request is not None:", "if False:"),
    Mutant(
        "an adapter takes the bytes of one rank",
        f"{_DISTRIBUTED}questions.py",
        "sum(one.num_bytes for one in loaded.values())",
        "first.num_bytes",
    ),
    # What encoders read.
    Mutant("recordings see nothing of what an encoder gave", _GRAPHS, "= torch.from_numpy(num_encoded)", "= 0"),
    Mutant("recordings have too few of its blocks", _GRAPHS, ", int(num_encoded.max()))", ", 0)"),
    Mutant("what must not come first may", _PENALTIES, "if position - rows.ahead <= start:", "if False:"),
    Mutant("suppressed tokens are sampled", _INPUTS, "[*words, *([token] for token in self._never)]", "words"),
    Mutant("decoders of encoders need none", _ENGINE, "encoder_input is None and self.inputs.encoding is not None", "False"),
    Mutant("an encoder takes no memory", _LOCAL_EXECUTOR, "self._encoder is not None and self._encoding is not None", "False"),
    Mutant(
        "as much is seen of an encoder as of the prompt",
        _BATCHES,
        "lens = seen.lengths, seen_lens, seen_lens_prefill",
        "lens = rows.lengths, lengths_all, lengths_prefill",
    ),
    Mutant("tokens before an image have an MLP of it", _BATCHES, "blind=blind_tokens if blind.any() else None", "blind=None"),
    Mutant("recorded tokens without an image have an MLP of it", _GRAPHS, "blind = (encoded == 0)", "blind = (encoded < 0)"),
    Mutant("prompts see what generated tokens see", _ATTENTION_ROWS, "begin >= own[-1].first", "True"),
    Mutant("every token sees the first blocks", _ENCODED_ROWS, "if not self.starts.any():", "if True:"),
    Mutant("decodes that see several images are one row", _ENCODED_ROWS, "(row < num_decodes).sum()", "num_decodes"),
    Mutant("an image overwrites the one beside it", _ENCODER_RUNNER, "* (last.start == view.start)", "* 0"),
    Mutant(
        "images begin within blocks", _ENCODING, "start += -(-length // self._block_size) * self._block_size", "start += length"
    ),
    Mutant("tokens come of an image that was not encoded", _ENCODER_RUNNER, "failed[step.seats.index(new.seat)] = ", "_ = "),
    Mutant(
        "tiles of another tower are taken",
        _IMAGE_PROMPTS,
        "(height, width, images.max_image_tiles) != (side, side, tiles)",
        "False",
    ),
    Mutant("layers are taken that are not there", _VISION, "<= tower.num_hidden_layers for", "<= layer for"),
    Mutant("images apart are seen as if side by side", _ENCODING, "or image.start != sides[-1][-1].end", ""),
    Mutant("padding of tiles is seen", _IMAGE_ENCODER, "[0, 0, :tiles]", "[0, 0]"),
    Mutant("keys of images have no norm", _ATTENTION, "k = self.k_norm(k)", "pass"),
    Mutant("gates are open", _BINDER, "self.weights.weight(parts[name]).tanh()", "self.weights.weight(parts[name])"),
    Mutant("no prompt has a token without a logit", _INPUTS, "prompts is None or prompts.views is None else", "True else"),
    Mutant("tokens without a logit are penalized", _PENALTIES, "[token for token in prompt if token < self._vocab_size]", "prompt"),
    Mutant("images that layers attend to are not counted", _SCHEDULER, "self.images.attend(attended)", "pass"),
    Mutant("what was said before follows the start", _ENCODING, "{first, self.speech.previous}", "{first}"),
    Mutant("a language is never heard", _SPEECH, "begin[1:2] = [None]", "pass"),
    Mutant("a language stands beside what is forced", _SPEECH, "if known is action is None else ()", ""),
    Mutant("times are kept out twice", _SPEECH, "and begin[-1] != self.no_timestamps", ""),
    Mutant("sound of any loudness is heard", _SOUND, "if not np.isfinite(features).all():", "if False:"),
    Mutant("a file has one channel", _SOUND, "block.mean(axis=1)", "block[:, 0]"),
    Mutant("every file has the model's rate", _SOUND, "soxr.resample(waveform, rate, self.rate)", "waveform"),
    Mutant("long files are cut", _SOUND, "if len(waveform) > most:", "if False:"),
    Mutant("what was said before is not told", f"{_SERVER}transcriptions.py", "[*before, *begin]", "begin"),
    Mutant(
        "translations are transcriptions",
        f"{_SERVER}transcriptions.py",
        "begin(body.language or None, task)",
        "begin(body.language)",
    ),
    Mutant(
        "pixels see themselves where they should see the text",
        f"{_IMAGE_GENERATION}attention.py",
        "attn.to_k(seen)",
        "attn.to_k(hidden_states)",
    ),
    Mutant(
        "a page that is not full begins the next row",
        f"{_IMAGE_GENERATION}attention.py",
        "if missing := -x.shape[1] %",
        "if missing := -x.shape[1] % x.shape[1] %",
    ),
    Mutant(
        "an image keeps what is known of the sizes of another", f"{_IMAGE_GENERATION}attention.py", "self._metas.clear()", "pass"
    ),
    Mutant("masks of keys are passed over", f"{_IMAGE_GENERATION}attention.py", "if attention_mask is not None:", "if False:"),
    Mutant("parts run code of their own", f"{_IMAGE_GENERATION}index.py", "if value[0] not in _LIBRARIES:", "if False:"),
    Mutant(
        "parts that are named need not be there", f"{_IMAGE_GENERATION}index.py", "if not (folder / part).is_dir()]:", "if False]:"
    ),
    Mutant("norms within attention are passed over", f"{_IMAGE_GENERATION}load.py", "        if unknown:\n", "        if False:\n"),
    Mutant("heads see each other's scale", f"{_IMAGE_GENERATION}load.py", "layer.scale, None", "1.0, None"),
    Mutant("images that are no numbers are black", _IMAGE_PIPELINE, " and np.isfinite(found.images).all()", ""),
    Mutant("calls are counted of all images", _IMAGE_PIPELINE, "            kernel.calls = 0\n", "            pass\n"),
    Mutant("all images have one noise", _IMAGE_PIPELINE, "manual_seed(seed + i)", "manual_seed(seed)"),
    Mutant(
        "height and width change places",
        _IMAGE_PIPELINE,
        '{"height": self._side("height", height), "width"',
        '{"width": self._side("height", height), "height"',
    ),
    Mutant("prompts are cut", _IMAGE_PIPELINE, "if count > most:", "if False:"),
    Mutant(
        "keys that nothing reads are passed over", _IMAGE_PIPELINE, "    _refuse_unread(config, EngineConfig())\n", "    pass\n"
    ),
    Mutant(
        "missing weights are random", f"{_IMAGE_GENERATION}load.py", "        if wrong := sorted(", "        if False and sorted("
    ),
    Mutant("parts may be of any class", f"{_IMAGE_GENERATION}index.py", "if found[part][1] != CLASSES[part]:", "if False:"),
]

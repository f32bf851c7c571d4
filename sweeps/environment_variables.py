"""Lists what happens to the environment variables of the libraries: passed on, removed or set.

Ray, MLflow, PyTorch, OpenMP, matplotlib and Python read a few hundred variables, at import or at
start. Every rule of this table gives its reason. sweeps/environment.py applies the rules. Variables
without a rule are passed on, above all PATH, HOME, the proxies and the credentials of cloud
storage.
"""

import fnmatch
from enum import Enum
from typing import NamedTuple


class Action(Enum):
    """Defines the treatment of a variable."""

    PASS = "passed on"
    REMOVE = "removed"
    SET = "set"
    DEFAULT = "set where it is not"


class Rule(NamedTuple):
    """Assigns a treatment to variables.

    The names may contain * as in file names. If several rules match a name, the first one applies.
    """

    names: str  # separated by blanks
    action: Action
    reason: str
    value: str = ""  # for the actions SET and DEFAULT
    at_start: bool = False  # read before any code of this project runs

    def matches(self, name: str) -> bool:
        """Returns whether the rule applies to the variable `name`."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.names.split())


PASS, REMOVE, SET, DEFAULT = Action

PYTHON = (
    Rule(
        "PYTHONOPTIMIZE",
        REMOVE,
        "strips docstrings, without which MLflow can't be imported",
        at_start=True,
    ),
    Rule(
        "PYTHONWARNINGS PYTHONDEVMODE PYTHONWARNDEFAULTENCODING",
        REMOVE,
        "may turn warnings of other packages into errors",
        at_start=True,
    ),
    Rule(
        "PYTHONINSPECT", REMOVE, "a program would wait at a prompt instead of ending", at_start=True
    ),
    Rule(
        "PYTHONMALLOC PYTHONMALLOCSTATS PYTHONTRACEMALLOC PYTHONASYNCIODEBUG PYTHONPERFSUPPORT"
        " PYTHON_PERF_* PYTHON_JIT PYTHON_GIL",
        REMOVE,
        "changes what preparation costs",
        at_start=True,
    ),
    Rule(
        "PYTHONVERBOSE PYTHONDEBUG PYTHONPROFILEIMPORTTIME PYTHONDUMPREFS PYTHONDUMPREFSFILE",
        REMOVE,
        "fills stderr",
        at_start=True,
    ),
    Rule("PYTHON_CPU_COUNT", REMOVE, "cores are those that this process may use"),
    Rule(
        "PYTHONIOENCODING PYTHONLEGACYWINDOWSSTDIO",
        REMOVE,
        "is meant for this program's output; others write to files, in UTF-8",
    ),
    Rule("PYTHONUTF8", SET, "files are read and written in UTF-8, whatever the locale", "1"),
    Rule("PYTHONPATH", PASS, "it may name folders of packages; the project's come first"),
    Rule(
        "PYTHONSAFEPATH PYTHONHOME PYTHONPLATLIBDIR PYTHONNOUSERSITE PYTHONUSERBASE"
        " PYTHONPYCACHEPREFIX PYTHONDONTWRITEBYTECODE",
        PASS,
        "names the folders of packages and their compiled files",
    ),
    Rule(
        "PYTHONUNBUFFERED PYTHONFAULTHANDLER PYTHONNODEBUGRANGES PYTHONCOERCECLOCALE"
        " PYTHONINTMAXSTRDIGITS",
        PASS,
        "changes no result",
    ),
    Rule("PYTHONBREAKPOINT PYTHONSTARTUP", PASS, "used by a debugger or a prompt, with --debug"),
    Rule("PYTHONHASHSEED", PASS, "nothing is drawn from, or ordered by, hashes of strings"),
    Rule("LANG LANGUAGE LC_*", PASS, "decides the encoding of the output"),
)
SYSTEM = (
    Rule(
        "LD_PRELOAD LD_LIBRARY_PATH",
        PASS,
        "a driver or an allocator may need it; recorded with each trial",
    ),
    Rule(
        "GLIBC_TUNABLES MALLOC_ARENA_MAX MALLOC_TRIM_THRESHOLD_ MALLOC_MMAP_THRESHOLD_"
        " MALLOC_TOP_PAD_ MALLOC_MMAP_MAX_ MALLOC_CONF",
        PASS,
        "a choice of the machine's owner; recorded with each trial",
    ),
    Rule(
        "MALLOC_CHECK_ MALLOC_PERTURB_ MALLOC_TRACE",
        REMOVE,
        "fills or checks memory, which takes time",
        at_start=True,
    ),
    Rule(
        "GIT_*", REMOVE, "in a git hook it names another repository, whose commit would be recorded"
    ),
    Rule(
        "COLUMNS LINES JUPYTER_COLUMNS JUPYTER_LINES",
        REMOVE,
        "may be out of date or 0; a terminal knows its size",
    ),
    Rule(
        "TTY_COMPATIBLE TTY_INTERACTIVE UNICODE_VERSION",
        REMOVE,
        "rich would draw a live view without a terminal, or none on a terminal",
    ),
    Rule(
        "TERM COLORTERM NO_COLOR FORCE_COLOR",
        PASS,
        "describes the terminal; a terminal with few abilities shows no live view",
    ),
    Rule("grpc_proxy", REMOVE, "Ray's processes communicate without a proxy"),
    Rule("GRPC_*", REMOVE, "prints or changes the traffic between Ray's processes"),
    Rule(
        "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION",
        REMOVE,
        "may name an implementation that the installed protobuf lacks",
    ),
    Rule("OTEL_*", REMOVE, "Ray and MLflow would export figures and spans"),
    Rule("PSUTIL_DEBUG", REMOVE, "fills stderr"),
)
OPENMP = (
    Rule(
        "KMP_DUPLICATE_LIB_OK MKL_THREADING_LAYER MKL_SERVICE_FORCE_INTEL",
        PASS,
        "some conda installations need it to import torch",
    ),
    Rule(
        "OMP_* GOMP_* KMP_* MKL_* OPENBLAS_* GOTO_* BLIS_* VECLIB_* NUMEXPR_*",
        REMOVE,
        "threads are pinned, part of what is measured, and recorded: the file's `threads` decides",
    ),
)
TORCH = (
    Rule(
        "CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER NVIDIA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES"
        " ROCR_VISIBLE_DEVICES",
        PASS,
        "which GPUs a launch may use is the user's choice; recorded with each trial",
    ),
    Rule(
        "CUDA_MODULE_LOADING CUDA_HOME CUDA_PATH CUDA_CACHE_* CUDNN_HOME CUDNN_PATH",
        PASS,
        "names the folders of CUDA",
    ),
    Rule(
        "CUDA_LAUNCH_BLOCKING CUDA_PROFILE CUDA_DEVICE_MAX_CONNECTIONS",
        REMOVE,
        "makes the loop wait for the GPU, and epochs longer",
    ),
    Rule(
        "NVIDIA_TF32_OVERRIDE TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
        REMOVE,
        "changes the precision of products, which the file chooses",
    ),
    Rule(
        "CUBLAS_WORKSPACE_CONFIG PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF PYTORCH_HIP_ALLOC_CONF",
        PASS,
        "a GPU's memory may be too small without it; recorded with each trial",
    ),
    Rule("TORCH_HOME", PASS, "names the folder of pretrained weights"),
    Rule(
        "PYTORCH_NVML_BASED_CUDA_CHECK",
        SET,
        "the fork server of trials may count GPUs, but not start CUDA",
        "1",
    ),
    Rule("TORCH_DEVICE_BACKEND_AUTOLOAD", PASS, "a device of another maker may need it"),
    Rule(
        "TORCH_* TORCHDYNAMO_* TORCHINDUCTOR_* PYTORCH_* ATEN_* ONEDNN_* DNNL_* KINETO_*"
        " TRITON_INTERPRET",
        REMOVE,
        "prints, profiles, or chooses other kernels than the trials' own",
    ),
    Rule(
        "NPY_* NUMPY_* SCIPY_* PANDAS_*", REMOVE, "chooses other kernels, types or rules of copying"
    ),
)
MATPLOTLIB = (
    Rule(
        "MPLBACKEND",
        SET,
        "pictures go to files; a notebook's backend exists only in the notebook",
        "agg",
    ),
    Rule("MATPLOTLIBRC", REMOVE, "pictures look the same everywhere"),
    Rule(
        "MPLCONFIGDIR QT_API DISPLAY WAYLAND_DISPLAY",
        PASS,
        "names the folder of the font cache; displays are not used",
    ),
)
MLFLOW = (
    Rule(
        "MLFLOW_TRACKING_URI MLFLOW_TRACKING_DIR MLFLOW_EXPERIMENT_NAME MLFLOW_EXPERIMENT_ID",
        REMOVE,
        "the file's `tracking`, or --uri and --experiment, decide instead",
    ),
    Rule(
        "MLFLOW_RUN_ID MLFLOW_RUN_CONTEXT MLFLOW_ACTIVE_MODEL_ID _MLFLOW_ACTIVE_MODEL_ID",
        REMOVE,
        "each trial has its own run",
    ),
    Rule(
        "MLFLOW_REGISTRY_URI MLFLOW_REGISTRY_DIR MLFLOW_GATEWAY_* MLFLOW_DEPLOYMENTS_*",
        REMOVE,
        "no model is registered or served",
    ),
    Rule(
        "MLFLOW_ENABLE_ASYNC_LOGGING MLFLOW_ASYNC_*",
        REMOVE,
        "a figure is sent when the next step begins, or waits in the outbox",
    ),
    Rule(
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING MLFLOW_SYSTEM_METRICS_*",
        REMOVE,
        "a sampling thread would disturb the timing",
    ),
    Rule("MLFLOW_TRUNCATE_LONG_VALUES", REMOVE, "MLflow would truncate values without a warning"),
    Rule(
        "MLFLOW_HTTP_REQUEST_BACKOFF_* MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER",
        REMOVE,
        "MLflow sends no request a second time",
    ),
    Rule(
        "MLFLOW_CONFIGURE_LOGGING MLFLOW_SQLALCHEMYSTORE_ECHO MLFLOW_PRINT_*",
        REMOVE,
        "prints between this program's lines",
    ),
    Rule(
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
        SET,
        "prints a bar on stderr for every file",
        "false",
    ),
    Rule(
        "MLFLOW_TRACE_* MLFLOW_TRACING_* MLFLOW_USE_* MLFLOW_ENABLE_OTLP_EXPORTER _MLFLOW_*",
        REMOVE,
        "nothing is traced",
    ),
    Rule(
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
        SET,
        "a request whose answer was lost would be sent twice",
        "0",
    ),
    Rule("MLFLOW_HTTP_REQUEST_TIMEOUT", DEFAULT, "seconds; to connect, and for the answer", "20"),
    Rule(
        "MLFLOW_LOGGING_LEVEL",
        DEFAULT,
        "prints a stack for a locked database, which this program reports itself",
        "CRITICAL",
    ),
    Rule(
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", SET, "prints the URL of every closed run", "true"
    ),
    Rule("MLFLOW_DISABLE_TELEMETRY DO_NOT_TRACK", SET, "no usage data is sent", "true"),
    Rule("MLFLOW_DISABLE_AGENT_HINT", SET, "prints between this program's lines", "true"),
    Rule(
        "MLFLOW_*",
        PASS,
        "credentials, certificates and limits of the tracker and its artifact stores",
    ),
)
RULES = PYTHON + SYSTEM + OPENMP + TORCH + MATPLOTLIB + MLFLOW
# For the use of the tracker in programs that do not belong to this project
MLFLOW_SETTINGS = tuple(rule for rule in MLFLOW if rule.action in (SET, DEFAULT))
RECORDED = [
    name for rule in SYSTEM + TORCH if "recorded" in rule.reason for name in rule.names.split()
]

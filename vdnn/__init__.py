"""vdnn: train convolutional networks in less memory than they need.  A training step is a verified plan."""

from vdnn import layers, models, schedules
from vdnn.building import build
from vdnn.comparing import Comparison, compare
from vdnn.descriptions import CheckpointError
from vdnn.exchange.errors import ModelError
from vdnn.exchange.loading import LoadedWeights
from vdnn.exchange.onnx_model import OnnxModel, from_onnx
from vdnn.exchange.weights_file import read_weights
from vdnn.explain import Explanation, explain
from vdnn.fitting import BudgetError
from vdnn.host_budgets import HostBudgetError
from vdnn.inputs import InputError
from vdnn.ladder import FitError
from vdnn.largest import Largest, fit
from vdnn.layers import Algorithm, Init, Layer, LayerError, ShapeError, Shapes, Spec, check_layer
from vdnn.memory.cost import Contention, measured, roofline
from vdnn.memory.cuda import CudaDevice
from vdnn.memory.decisions import DROP, KEEP, OFFLOAD, DecisionError, Decisions, Fate
from vdnn.memory.device import Device, DeviceError
from vdnn.memory.execute import execute, walk
from vdnn.memory.host import HostDevice
from vdnn.memory.jitter import Jitter, JitterError, expected_seconds, jittered
from vdnn.memory.plan import Plan, PlanError, Step
from vdnn.memory.searching import SearchError, searching
from vdnn.memory.simulate import simulate
from vdnn.memory.spill import SpillError, SpillWarning
from vdnn.memory.trace import Event, Trace
from vdnn.memory.verify import verify
from vdnn.network import Network, Role, Tensor
from vdnn.optimizers import SGD, Adam, Optimizer
from vdnn.planning import plan
from vdnn.recorder import Recorder, RecordingError, record
from vdnn.records import Table, TableError
from vdnn.studies import StudyError, StudyResult, StudyStopped, study
from vdnn.tape import Op, Tape
from vdnn.trace_files import TraceError
from vdnn.train import Epoch, Evaluation, Trainer, TrainingError

__version__ = "0.1.0"

__all__ = [
    "DROP",
    "KEEP",
    "OFFLOAD",
    "SGD",
    "Adam",
    "Algorithm",
    "BudgetError",
    "CheckpointError",
    "Comparison",
    "Contention",
    "CudaDevice",
    "DecisionError",
    "Decisions",
    "Device",
    "DeviceError",
    "Epoch",
    "Evaluation",
    "Event",
    "Explanation",
    "Fate",
    "FitError",
    "HostBudgetError",
    "HostDevice",
    "Init",
    "InputError",
    "Jitter",
    "JitterError",
    "Largest",
    "Layer",
    "LayerError",
    "LoadedWeights",
    "ModelError",
    "Network",
    "OnnxModel",
    "Op",
    "Optimizer",
    "Plan",
    "PlanError",
    "Recorder",
    "RecordingError",
    "Role",
    "SearchError",
    "ShapeError",
    "Shapes",
    "Spec",
    "SpillError",
    "SpillWarning",
    "Step",
    "StudyError",
    "StudyResult",
    "StudyStopped",
    "Table",
    "TableError",
    "Tape",
    "Tensor",
    "Trace",
    "TraceError",
    "Trainer",
    "TrainingError",
    "build",
    "check_layer",
    "compare",
    "execute",
    "expected_seconds",
    "explain",
    "fit",
    "from_onnx",
    "jittered",
    "layers",
    "measured",
    "models",
    "plan",
    "read_weights",
    "record",
    "roofline",
    "schedules",
    "searching",
    "simulate",
    "study",
    "verify",
    "walk",
]

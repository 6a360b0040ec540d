# SPDX-License-Identifier: MIT
"""torchrun --nproc-per-node 2 examples/torch_decode.py [--picture FILE.png]
python examples/torch_decode.py [--executor emu|cuda] [--ranks N]

A decoding step on torch tensors with double-batch overlap: while the rows of one micro-batch cross
by a low-latency call, the GEMMs of the other one run.  A call launches only what sends; its receive
hook, called behind the other batch's GEMM, launches what receives, and finds the rows there.

Checked against the same layers without ranks.  All values are small integers, which bfloat16 holds
exactly, so both must agree to the last bit.  On GPUs the step is timed, beside the same step with
one micro-batch after the other and without hooks; the picture shows both (matplotlib draws it).
"""

import argparse
import contextlib
import os
from collections import namedtuple

import torch

from deepep_ptx import Buffer, run_ranks

Sizes = namedtuple("Sizes", "max_tokens hidden topk experts_per_rank layers rounds")
CPU_SIZES = Sizes(max_tokens=16, hidden=256, topk=4, experts_per_rank=4, layers=2, rounds=1)
GPU_SIZES = Sizes(max_tokens=128, hidden=7168, topk=8, experts_per_rank=8, layers=2, rounds=21)
WARMUP = 3

Span = namedtuple("Span", "lane what begin_us end_us")
GEMMS = "GEMMs"
COLOURS = {"GEMM of batch 1": "#35608d", "GEMM of batch 2": "#7fa6cf", "send": "#c44e52",
           "on their way": "#eadfd0", "receive": "#dd8452", "send and receive": "#8172b2"}


class Timeline:
    """When the GPU did what: events on the current stream, around what is queued in a `span`.

    Without a GPU there is nothing to record.
    """

    def __init__(self, device):
        self.is_kept = device.type == "cuda"
        self.recorded = []

    @contextlib.contextmanager
    def span(self, lane, what):
        begin = self.now()
        yield
        self.recorded.append((lane, what, begin, self.now()))

    def now(self):
        if not self.is_kept:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def spans(self):
        """`Span`s in microseconds since the first one began."""
        if not self.is_kept:
            return []
        torch.cuda.current_stream().synchronize()
        zero = self.recorded[0][2]
        return [Span(lane, what, *(1e3 * zero.elapsed_time(event) for event in (begin, end)))
                for lane, what, begin, end in self.recorded]


class Weights:
    """One rank's weights, the same in all layers.

    attention: [H, H], moves each value to the next column.  experts: [L, H, H]: expert e adds a
    value and the one before it, and multiplies the sum by scale[e].
    """

    def __init__(self, buffer, sizes, device):
        num_experts = buffer.group_size * sizes.experts_per_rank
        self.scale = 1.0 + torch.arange(num_experts, device=device) % 3
        one = torch.eye(sizes.hidden, device=device, dtype=torch.bfloat16)
        self.attention = one.roll(1, dims=1)
        own = self.scale[buffer.rank * sizes.experts_per_rank:][:sizes.experts_per_rank]
        self.experts = torch.stack([(one + self.attention) * scale for scale in own.tolist()])


class Batch:
    """The tokens of one micro-batch on one rank; every rank may have another number of them."""

    def __init__(self, number, buffer, weights, sizes, device):
        random = torch.Generator().manual_seed(2 * buffer.rank + number)
        tokens = int(torch.randint(sizes.max_tokens // 2, sizes.max_tokens + 1, (),
                                   generator=random))
        self.number, self.buffer, self.weights, self.sizes = number, buffer, weights, sizes
        self.num_experts = buffer.group_size * sizes.experts_per_rank
        self.tokens = torch.randint(-2, 3, (tokens, sizes.hidden), generator=random
                                    ).bfloat16().to(device)
        self.routing = [(
            torch.rand(tokens, self.num_experts, generator=random).topk(sizes.topk).indices
            .to(device), torch.randint(0, 3, (tokens, sizes.topk), generator=random).float()
            .to(device)) for _ in range(sizes.layers)]

    def begin(self, timeline):
        """The step begins anew."""
        self.timeline, self.x = timeline, self.tokens

    def attention(self):
        with self.timeline.span(GEMMS, f"GEMM of batch {self.number}"):
            self.x = self.x @ self.weights.attention

    def dispatch(self, layer, hook):
        """With `hook` rows are on their way behind this, and what is returned receives them."""
        def call():
            self.topk_idx, self.topk_weights = self.routing[layer]
            self.recv_x, _, self.handle, _, receive = self.buffer.low_latency_dispatch(
                self.x, self.topk_idx, self.sizes.max_tokens, self.num_experts, use_fp8=False,
                return_recv_hook=hook)
            return receive

        return self._called(call, hook)

    def experts(self):
        with self.timeline.span(GEMMS, f"GEMM of batch {self.number}"):
            # Of rows that nobody sent something comes too, at which combine does not look.
            self.recv_x = torch.bmm(self.recv_x, self.weights.experts)

    def combine(self, hook):
        def call():
            self.combined_x, _, receive = self.buffer.low_latency_combine(
                self.recv_x, self.topk_idx, self.topk_weights, self.handle, return_recv_hook=hook)
            return receive

        return self._called(call, hook)

    def end_layer(self):
        """What combine gave is the next layer's, small again."""
        self.x = self.combined_x.clamp(-2, 2)

    def _called(self, call, hook):
        lane = f"rows of batch {self.number}"
        with self.timeline.span(lane, "send" if hook else "send and receive"):
            receive = call()
        if not hook:
            return None
        sent = self.timeline.now()

        def received():
            self.timeline.recorded.append((lane, "on their way", sent, self.timeline.now()))
            with self.timeline.span(lane, "receive"):
                receive()

        return received

    def is_right(self):
        """Whether the newest step gave what the layers without ranks give."""
        x = self.tokens.float()
        for topk_idx, topk_weights in self.routing:
            x = x.roll(1, dims=1)
            factor = (topk_weights * self.weights.scale[topk_idx]).sum(dim=1, keepdim=True)
            want = factor * (x + x.roll(1, dims=1))
            x = want.clamp(-2, 2)
        return torch.equal(self.combined_x, want.bfloat16())


def overlapped(first, second, num_layers):
    """All layers of two micro-batches: each call is on its way while the other batch computes."""
    receive = None
    for layer in range(num_layers):
        first.attention()
        if receive is not None:
            receive()
            second.end_layer()
        receive = first.dispatch(layer, hook=True)
        second.attention()
        receive()
        receive = second.dispatch(layer, hook=True)
        first.experts()
        receive()
        receive = first.combine(hook=True)
        second.experts()
        receive()
        first.end_layer()
        receive = second.combine(hook=True)
    receive()


def one_after_the_other(first, second, num_layers):
    """The same without hooks: each call ends before the next GEMM begins."""
    for batch in first, second:
        for layer in range(num_layers):
            batch.attention()
            batch.dispatch(layer, hook=False)
            batch.experts()
            batch.combine(hook=False)
            batch.end_layer()


STEPS = {"two micro-batches, receive hooks": overlapped,
         "one micro-batch after the other": one_after_the_other}


def run(buffer, device, sizes):
    """Returns (tokens, whether all results are right, title -> `Span`s of each round)."""
    weights = Weights(buffer, sizes, device)
    first, second = (Batch(number, buffer, weights, sizes, device) for number in (1, 2))
    same, found = True, {title: [] for title in STEPS}
    for number in range(sizes.rounds + (WARMUP if device.type == "cuda" else 0)):
        for title, step in STEPS.items():
            timeline = Timeline(device)
            for batch in first, second:
                batch.begin(timeline)
            step(first, second, sizes.layers)
            spans = timeline.spans()
            same = same and first.is_right() and second.is_right()
            if number >= WARMUP:
                found[title].append(spans)
    return len(first.tokens) + len(second.tokens), same, found


def length_us(spans):
    """Of a step."""
    return max(span.end_us for span in spans)


def median_of(rounds):
    """The round of the median length."""
    return sorted(rounds, key=length_us)[len(rounds) // 2]


def draw(found, path, what):
    """A picture of steps: title -> `Span`s.  what: ran, for the heading."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(12, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(what)
    panels = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    lanes = [GEMMS, "rows of batch 1", "rows of batch 2"]
    for axes, (title, spans) in zip(panels, found.items(), strict=True):
        for span in spans:
            axes.barh(lanes.index(span.lane), span.end_us - span.begin_us, left=span.begin_us,
                      height=0.6, color=COLOURS[span.what])
        axes.set_title(f"{title}: {length_us(spans):.0f} µs", fontsize=10, loc="left")
        axes.set_yticks(range(len(lanes)), lanes)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("µs on rank 0's GPU since the step began (events on its stream)")
    figure.legend(handles=[Patch(color=colour, label=what) for what, colour in COLOURS.items()],
                  loc="outside lower center", ncols=len(COLOURS), frameon=False, fontsize=8)
    figure.savefig(path)


def report(found, device, num_ranks, sizes, path):
    """Rank 0 says what the steps took, and draws them."""
    medians = {title: median_of(rounds) for title, rounds in found.items()}
    for title, spans in medians.items():
        print(f"{title}: {length_us(spans):.0f} µs (median of {sizes.rounds} steps of "
              f"{sizes.layers} layers)")
    if path is None:
        return
    try:
        draw(medians, path, f"{num_ranks} ranks on {torch.cuda.get_device_name(device)}: "
                            f"{sizes.layers} layers, up to {sizes.max_tokens} tokens a micro-batch "
                            f"and rank, hidden {sizes.hidden}, top-{sizes.topk} of "
                            f"{num_ranks * sizes.experts_per_rank} experts, bf16")
    except ImportError:
        print(f"{path}: not drawn, which takes matplotlib")


def rank_main(comm):
    """One rank of `run_ranks`, a thread; returns what `run` returns."""
    if comm.executor.name != "cuda":
        with Buffer(comm, low_latency_mode=True) as buffer:
            return run(buffer, torch.device("cpu"), CPU_SIZES)
    device = torch.device("cuda", comm.executor.device)
    torch.cuda.set_device(device)
    with torch.cuda.stream(torch.cuda.Stream()), Buffer(comm, low_latency_mode=True) as buffer:
        return run(buffer, device, GPU_SIZES)


def torchrun_main(path):
    """One process of torchrun, with a GPU of its own; returns whether it was right."""
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl")
    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    with torch.cuda.stream(torch.cuda.Stream()), \
            Buffer(torch.distributed.group.WORLD, low_latency_mode=True) as buffer:
        tokens, same, found = run(buffer, device, GPU_SIZES)
    torch.distributed.destroy_process_group()
    print(f"rank {rank}: {tokens} tokens, {'bit-exact' if same else 'WRONG'}", flush=True)
    if rank == 0:
        report(found, device, num_ranks, GPU_SIZES, path)
    return same


def main():
    parser = argparse.ArgumentParser(description="A decoding step, double-batch overlap.")
    parser.add_argument("--executor", choices=("emu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--ranks", type=int, default=2, help="without torchrun")
    parser.add_argument("--picture", metavar="FILE", help="of the timelines, under torchrun")
    args = parser.parse_args()
    if "LOCAL_RANK" in os.environ:
        raise SystemExit(not torchrun_main(args.picture))
    if args.picture:
        parser.error("--picture: only under torchrun, on GPUs: the CPU executor has no times")
    results = run_ranks(rank_main, args.ranks, executor=args.executor)
    for rank, (tokens, same, _) in enumerate(results):
        print(f"rank {rank}: {tokens} tokens, {'bit-exact' if same else 'WRONG'}")
    raise SystemExit(not all(same for _, same, _ in results))


if __name__ == "__main__":
    main()

"""TD3 as one CUDA graph for each kind of update, and nothing else: what a GPU allows.

In the manner of LeanRL (https://github.com/pytorch-labs/LeanRL): replay on the device, and in the
graph the sampling, both losses, the optimizers and the targets. Nothing is logged or checked.
"""

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_SIZE, WIDTH = 256, 256
WARM_UP = 3


class Critics(nn.Module):
    """Two action-value functions as one product of stacked matrices."""

    def __init__(self, obs_dim: int, action_dim: int) -> None:
        super().__init__()
        dims = [obs_dim + action_dim, WIDTH, WIDTH, 1]
        pairs = list(pairwise(dims))
        self.weights = nn.ParameterList(
            torch.empty(2, a, b).uniform_(-(a**-0.5), a**-0.5) for a, b in pairs
        )
        self.biases = nn.ParameterList(
            torch.empty(2, 1, b).uniform_(-(a**-0.5), a**-0.5) for a, b in pairs
        )

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Both values (2, B)."""
        x = torch.cat([obs, action], dim=-1).expand(2, -1, -1)
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x.relu() if index else x, weight)
        return x.squeeze(-1)


class CapturedTD3:
    """Learns from a replay of random steps; on a CPU without graphs.

    Args:
        obs_dim: O.
        action_dim: A.
        capacity: of the replay, which is full.
        device: of everything.

    """

    def __init__(self, obs_dim: int, action_dim: int, capacity: int, device: torch.device) -> None:
        self.obs = torch.randn(capacity, obs_dim, device=device)
        self.next_obs = torch.randn(capacity, obs_dim, device=device)
        self.action = 2 * torch.rand(capacity, action_dim, device=device) - 1
        self.reward = torch.rand(capacity, device=device)
        self.device = device
        widths = [nn.Linear(obs_dim, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
        self.actor = nn.Sequential(*widths, nn.Linear(WIDTH, action_dim), nn.Tanh()).to(device)
        self.critics = Critics(obs_dim, action_dim).to(device)
        self.targets = copy.deepcopy(nn.ModuleList([self.actor, self.critics]))
        adam = {"lr": 1e-3, "fused": True, "capturable": device.type == "cuda"}
        self.optims = [torch.optim.Adam(m.parameters(), **adam) for m in (self.actor, self.critics)]
        self.updates = 0
        self.replays: dict[bool, Callable[[], None]] = {}

    def learn(self, count: int) -> None:
        """Make ``count`` updates, without waiting for them."""
        for _ in range(count):
            self.updates += 1
            both = self.updates % 2 == 0
            if self.updates <= 2 * WARM_UP or self.device.type != "cuda":
                self.update(both)
                continue
            if both not in self.replays:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self.update(both)
                self.replays[both] = graph.replay
            self.replays[both]()

    def update(self, both: bool) -> None:
        """Step the critics and, if ``both``, the actor and the targets."""
        rows = torch.randint(len(self.obs), (BATCH_SIZE,), device=self.device)
        obs, action, next_obs = self.obs[rows], self.action[rows], self.next_obs[rows]
        with torch.no_grad():
            noise = (0.2 * torch.randn_like(action)).clamp(-0.5, 0.5)
            next_action = (self.targets[0](next_obs) + noise).clamp(-1, 1)
            next_q = self.targets[1](next_obs, next_action).amin(0)
            target_q = (self.reward[rows] + 0.99 * next_q).expand(2, -1)
        self.step(F.mse_loss(self.critics(obs, action), target_q, reduction="sum"), self.critics, 1)
        if both:
            self.step(-self.critics(obs, self.actor(obs))[0].mean(), self.actor, 0)
            new = [*self.actor.parameters(), *self.critics.parameters()]
            with torch.no_grad():
                torch._foreach_lerp_(list(self.targets.parameters()), new, 0.005)  # type: ignore[reportPrivateImportUsage]

    def step(self, loss: Tensor, module: nn.Module, index: int) -> None:
        """Step one optimizer."""
        self.optims[index].zero_grad()
        loss.backward(inputs=list(module.parameters()))
        self.optims[index].step()

"""Trains the autoencoder of kl_networks.py on a packed set of 32x32 images, and writes encoder.pt and decoder.pt.

use: python train_kl.py DATA [SECONDS]
"""

import sys
import time

import torch
from kl_networks import Decoder, Encoder

from ebmscale.data.chunks import read_split
from ebmscale.data.manifest import Manifest
from ebmscale.storage import Storage

data, seconds = Storage.at(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
images = read_split(data, Manifest.load(data), "train")[0]
torch.manual_seed(0)
encoder, decoder = Encoder(), Decoder()
adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
end, loss = time.process_time() + seconds, torch.zeros(())
while time.process_time() < end:
    x = images[torch.randint(len(images), (64,))].float() / 127.5 - 1
    mean, log_std = encoder(x)
    z = mean + log_std.exp() * torch.randn_like(mean)
    kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1).sum((1, 2, 3)) - log_std.sum((1, 2, 3))
    error = (decoder(z) - x).square().sum((1, 2, 3)) / (2 * 0.2**2)
    loss = (error + kl).mean()
    adam.zero_grad()
    loss.backward()
    adam.step()
for name, network in {"encoder": encoder, "decoder": decoder}.items():
    torch.save(network.state_dict(), f"{name}.pt")
print(f"loss {loss.item():.1f} nats an image: encoder.pt, decoder.pt")

"""Do small runs of the commands still give the same bits as at an earlier revision?

python tests/same_bits.py REVISION [NAME ...]    e.g. HEAD~5; names of cases below, all where none is given

Checks the revision out into a temporary folder and runs every case there and here, in float32 on one thread: losses, weights and masks must agree
to the last bit, scores in twelve digits. For changes of the code that are meant to leave its numbers alone; not part of pytest, since processors differ in their bits.
"""
import hashlib, json, os, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parents[1]
small = '--set nf=8,nf_mask=8,nf_disc=8,bf16=false --bs 4 --steps 24 --size 32 --device cpu --no-progress --no-previews'
cases = {
    'paper': f'train digits --recipe paper --out run {small}',
    'fast': f'train digits --recipe fast --out run {small}',
    'robust': f'train digits --recipe robust --out run {small}',
    'digits3': f'train digits3 --recipe robust --out run {small}',
    'folder': f'train pics --recipe robust --seed 3 --out run {small}',
    'segment': 'segment pics --out run --device cpu --no-progress',
    'refine': 'segment pics --out run --refine both --device cpu --no-progress',
    'teach': 'teach digits --size 32 --net-size 32 --teacher kmeans --steps 20 --nf-mask 8 --n-res 1 --out run --device cpu --no-progress',
    'evaluate': 'evaluate --data digits --json run/scores.json --device cpu --no-progress',
}
free = """id run recipe changes config notes model seconds seconds_taught seconds_a_picture minutes date command started versions commit commits resumed
    data threads processor accelerator simd has_bf16 processes device losses failed n_pictures""".split() # not of the numbers

def pictures(folder):
    "32 pictures of two sizes"
    import numpy as np
    from PIL import Image
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(32):
        a = np.full((48,40+24*(i%2),3), rng.integers(0, 256, 3))
        y,x = rng.integers(4, 20, 2)
        a[y:y+20,x:x+16] = rng.integers(0, 256, 3)
        Image.fromarray((a + rng.integers(-9, 10, a.shape)).clip(0, 255).astype(np.uint8)).save(folder/f'{i:02}.png')

def lean(o):
    "Without what is not of the numbers"
    if isinstance(o, float): return round(o, 12) # scores are sums of many pictures, whose order may change
    if isinstance(o, dict): return {k: lean(v) for k,v in o.items() if k not in free and not (k == 'pictures' and isinstance(v, str))}
    return [lean(v) for v in o] if isinstance(o, list) else o

def digest(file):
    "Hash of what a file says: pixels, tensors, numbers"
    if file.suffix == '.png':
        from PIL import Image
        data = Image.open(file).tobytes()
    elif file.suffix == '.safetensors':
        from safetensors.numpy import load_file
        data = b''.join(k.encode()+v.tobytes() for k,v in sorted(load_file(file).items()))
    elif file.suffix == '.json': data = json.dumps(lean(json.loads(file.read_text())), sort_keys=True).encode()
    elif file.suffix == '.csv':
        import pandas as pd
        data = pd.read_csv(file).drop(columns='seconds', errors='ignore').sort_index(axis=1).round(12 if file.stem == 'history' else 20).to_csv().encode()
    else: return None
    return hashlib.blake2b(data, digest_size=8).hexdigest()

def run(code, name, folder):
    "Digests of all files of one case, by the code in a folder"
    folder.mkdir()
    pictures(folder/'pics')
    command,*argv = cases[name].split()
    env = dict(os.environ, PYTHONPATH=str(code), OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', PYTHONWARNINGS='ignore', REDO_CACHE=str(folder/'cache'), MPLBACKEND='Agg')
    p = subprocess.run([sys.executable, '-c', f'import sys; from redo.cli import redo_{command} as f; sys.exit(f())', *argv], cwd=folder, env=env, capture_output=True, text=True)
    if p.returncode: raise SystemExit(f'{name} in {code}: {p.stderr}')
    return {o.relative_to(folder/'run').as_posix(): d for o in sorted((folder/'run').rglob('*')) if o.is_file() and o.name not in ('run.json','config.json','README.md','curve.png','report.html') and (d := digest(o))}

def main(revision, *names):
    bad = 0
    with tempfile.TemporaryDirectory() as d:
        old = Path(d)/'old'
        subprocess.run(['git', 'worktree', 'add', '--detach', '--quiet', old, revision], cwd=root, check=True)
        try:
            for name in names or cases:
                a,b = run(old, name, Path(d)/f'{name}-old'),run(root, name, Path(d)/f'{name}-new')
                diff = sorted(k for k in a.keys()|b.keys() if a.get(k) != b.get(k))
                bad += bool(diff)
                print(f'{name:10} {len(a)} files, ' + (f"DIFFERENT: {', '.join(diff)}" if diff else 'the same bits'), flush=True)
        finally: subprocess.run(['git', 'worktree', 'remove', '--force', old], cwd=root)
    return bad

if __name__ == '__main__':
    if len(sys.argv) < 2 or sys.argv[1].startswith('-'): raise SystemExit(__doc__)
    sys.exit(bool(main(*sys.argv[1:])))

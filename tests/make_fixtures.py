"""Writes the fixtures of this project: `python tests/make_fixtures.py`, into tests/fixtures/redo

`networks` and `datasets` are made here. The training step is a transcription of the paper's formulas in plain PyTorch and float64, on tensors by the names
of the authors' files; it imports nothing of `redo`. The pictures are drawn, and what the loaders should make of them is computed by indexing alone.
`REDO_SHARED` must hold the values of the reference implementation (fixtures/redo): both are held against these first, and nothing is written unless they
agree. `mask_regularizers` and `segmentation_scores` are copies of the reference's values."""
import argparse, json, math, os, shutil
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from scipy.io import loadmat, savemat

root = Path(__file__).resolve().parents[1]
own = root/'tests'/'fixtures'/'redo'
OPTIONS = dict(dataset='none', dataroot='./data', nx=3, nf=8, workers=4, nTest=5, nIteration=50000, initOrthoGain=.8,
    lrG=1e-4, lrM=1e-5, lrD=1e-4, lrZ=1e-4, gStepFreq=1, dStepFreq=1, wdecay=1e-4, wrecZ=5., outf='.', checkpointFreq=500, manualSeed=7,
    resume=False, clean=True, silent=False, autoRestart=0., device='cpu', bestValIoU=0.) # as the authors' files name them
NETS = ('netEncM','netGenX','netDX','netRecZ')

class Net:
    "Tensors by their published names; what is asked for and not there is made"
    def __init__(self, sd=None):
        sd = sd or {}
        self.p,self.train,self.new = {k: v.double().clone().requires_grad_(not k.endswith(('weight_u','weight_v'))) for k,v in sd.items()},True,not sd
    def get(self, k, make):
        if k not in self.p:
            assert self.new, k
            self.p[k] = make().float().double().requires_grad_(not k.endswith(('weight_u','weight_v')))
        return self.p[k]
    def state(self): return {k: v.detach().float() for k,v in self.p.items()}
    def learned(self): return [v for v in self.p.values() if v.requires_grad]
    def weight(self, k, *shape): return self.get(k, lambda: torch.nn.init.orthogonal_(torch.empty(shape), .8))
    def bias(self, k, n, fan): return self.get(f'{k}.bias', lambda: torch.empty(n).uniform_(-1/math.sqrt(fan), 1/math.sqrt(fan)))
    def sn(self, k, *shape):
        W = self.weight(f'{k}.weight_orig', *shape)
        m = W.reshape(len(W), -1)
        u,v = [self.get(f'{k}.weight_{o}', lambda: F.normalize(torch.randn(n), dim=0)) for o,n in zip('uv', m.shape)]
        if self.train:
            with torch.no_grad():
                v = F.normalize(m.t()@u, dim=0, eps=1e-12)
                u = F.normalize(m@v, dim=0, eps=1e-12)
                self.p[f'{k}.weight_u'],self.p[f'{k}.weight_v'] = u,v
        return W/(u@(m@v))
    def conv(self, x, k, n, ks=3, bias=True, sn=True, stride=1, pad=None):
        shape = (n, x.shape[1], ks, ks)
        W = self.sn(k, *shape) if sn else self.weight(f'{k}.weight', *shape)
        return F.conv2d(x, W, self.bias(k, n, x.shape[1]*ks*ks) if bias else None, stride, ks//2 if pad is None else pad)
    def dense(self, x, k, n): return F.linear(x, self.weight(f'{k}.weight', n, x.shape[1]), self.bias(k, n, x.shape[1]))
    def norm(self, x, k):
        return F.instance_norm(x, weight=self.get(f'{k}.weight', lambda: torch.ones(x.shape[1])), bias=self.get(f'{k}.bias', lambda: torch.zeros(x.shape[1])))

def twice(x): return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
def halve(x): return F.avg_pool2d(x, 2)
def around(x): return F.pad(x, (3,3,3,3), 'reflect')

def find_masks(w, x, o):
    c = o['nfM']
    def cir(x, k, n, i, ks=3, stride=1, pad=1): return F.relu(w.norm(w.conv(x, f'{k}.{i}', n, ks, False, False, stride, pad), f'{k}.{i+1}'))
    h = cir(around(x), 'cnn.0.mods', c//4, 1, 7, pad=0)
    h = cir(h, 'cnn.0.mods', c//2, 4, stride=2)
    h = cir(h, 'cnn.0.mods', c, 7, stride=2)
    for i in range(1, o['nResM']+1):
        b = w.conv(cir(h, f'cnn.{i}.blocs', c, 0), f'cnn.{i}.blocs.3', c, sn=False)
        h = F.relu(w.norm(h+b, f'cnn.{i}.activationF.0'))
    s = h.shape[-1]
    pools = [w.conv(F.avg_pool2d(h, k), f'psp.{j}.1', 1, 1, sn=False) for j,k in enumerate((s, s//2, s//3, s//6))]
    h = torch.cat([h]+[F.interpolate(p, (s,s), mode='bilinear', align_corners=False) for p in pools], 1)
    h = cir(twice(h), 'out.mods', (c+4)//2, 1)
    h = cir(twice(h), 'out.mods', (c+4)//4, 5)
    l = w.conv(around(h), 'out.mods.9', 1 if o['nMasks']==2 else o['nMasks'], 7, sn=False, pad=0)/o['temperature']
    return torch.cat([l.sigmoid(), 1-l.sigmoid()], 1) if o['nMasks']==2 else l.softmax(1)

def attend(w, x, k):
    c,(b,_,hh,ww) = x.shape[1],x.shape
    f,g,h = [w.conv(x, f'{k}.{i}', n, 1, False) for i,n in (('f',max(1, c//8)), ('g',max(1, c//8)), ('h',c//2))]
    f,g,h = f.flatten(2),F.max_pool2d(g, 2).flatten(2),F.max_pool2d(h, 2).flatten(2)
    a = (g.transpose(1,2)@f).softmax(1) # keys, positions
    return w.get(f'{k}.gamma', lambda: torch.tensor([.3]))*w.conv((h@a).view(b, -1, hh, ww), f'{k}.o', c, 1, False) + x

def redraw_region(w, z, mask, k, o):
    nf,n,pre = o['nfX'],int(math.log2(o['sizex']))-2,f'net.{k}'
    def cn(x, name):
        g,b = [w.conv(z[...,None,None], f'{pre}.{p}{name}', x.shape[1], 1, sn=False) for p in ('gamma','beta')]
        return g*F.instance_norm(x) + b
    h = w.dense(z, f'{pre}.dense', nf*2**(n-1)*16).view(len(z), -1, 4, 4)
    for i in range(n):
        if o['useSelfAttG'] and i == n-1: h = attend(w, h, f'{pre}.selfAtt')
        out,m = nf*2**(n-1-i),F.avg_pool2d(mask, o['sizex']//h.shape[-1])
        t = w.conv(twice(torch.cat([F.relu(cn(h, f'A.{i}')), m], 1)), f'{pre}.convA.{i}.1', out, bias=False)
        h = w.conv(F.relu(cn(t, f'B.{i}')), f'{pre}.convB.{i}', out) + w.conv(twice(h), f'{pre}.sc.{i}.1', out, 1)
    return torch.tanh(w.conv(torch.cat([F.relu(cn(h, 'Out')), mask], 1), f'{pre}.convOut', 3))*mask

def look(w, x, nf, size, names, n_out, attention=False):
    n,(first,bloc,sc0,sc) = int(math.log2(size))-2,names
    h = halve(w.conv(F.relu(w.conv(x, f'{first}.0', nf)), f'{first}.2', nf)) + w.conv(halve(x), sc0, nf, 1)
    if attention: h = attend(w, h, 'selfAtt')
    for i in range(n):
        c = nf*2**min(i+1, n-1)
        t = w.conv(F.relu(w.conv(F.relu(h), bloc.format(i)+'.1', c)), bloc.format(i)+'.3', c)
        h = t+h if i == n-1 else halve(t) + w.conv(halve(h), sc.format(i), c, 1)
    return w.dense(h.sum((2,3)), 'net.dense' if 'net' in first else 'dense', n_out)

class Shifted(str):
    def format(self, i): return str.format(self, i+1)

def judge(w, x, o): return look(w, x, o['nfD'], o['sizex'], ('bloc0','blocs.{}','sc0.1','sc.{}.1'), 1, o['useSelfAttD'])[:,0]
def recover(w, x, o):
    names = ('net.blocs.0',Shifted('net.blocs.{}'),'net.sc.0.1',Shifted('net.sc.{}.1'))
    return look(w, x, o['nfZ'], o['sizex'], names, o['nMasks']*o['nz']).view(len(x), o['nMasks'], -1)

def compose(nets, x, z, o):
    masks = find_masks(nets['netEncM'], x, o)
    regions = torch.stack([redraw_region(nets['netGenX'], z[:,k], masks[:,k:k+1], k, o) for k in range(o['nMasks'])], 1)
    return masks,regions,regions + (1-masks[:,:,None])*x[:,None]

def grad_norm(net): return torch.stack([v.grad.norm() for v in net.learned() if v.grad is not None]).norm().item()

def train(nets, io, n, o):
    "The authors' steps in their order; a line of losses and gradient norms for each"
    adam = {k: torch.optim.Adam(nets[k].learned(), o[lr], betas=(0.,.9), weight_decay=o['wdecay'] if k == 'netEncM' else 0)
            for k,lr in zip(NETS, ('lrM','lrG','lrD','lrZ'))}
    lines = []
    for s in range(n):
        x,real,z = [io[f'step{s}.{k}'].double() for k in ('x','x_real','z')]
        for a in adam.values(): a.zero_grad()
        _,regions,fakes = compose(nets, x, z, o)
        adv = -judge(nets['netDX'], fakes.flatten(0,1), o).mean()
        rec = (recover(nets['netRecZ'], regions.sum(1), o)-z).square().mean()
        total = adv + o['wrecZ']*rec
        total.backward()
        norms = {}
        for k in ('netEncM','netGenX','netRecZ'):
            norms[k] = grad_norm(nets[k])
            adam[k].step()
        adam['netDX'].zero_grad()
        with torch.no_grad(): fakes = compose(nets, x, z, o)[2]
        loss_d = F.relu(1-judge(nets['netDX'], real, o)).mean() + F.relu(1+judge(nets['netDX'], fakes.flatten(0,1), o)).mean()
        loss_d.backward()
        norms['netDX'] = grad_norm(nets['netDX'])
        adam['netDX'].step()
        lines.append(dict(loss_adv_g=adv.item(), loss_z=rec.item(), loss_g_total=total.item(), loss_d=loss_d.item(), grad_norm=norms))
    return lines

def final(nets, io, o):
    "What the networks say in evaluation mode"
    for w in nets.values(): w.train = False
    x,z = io['eval.x'].double(),io['eval.z'].double()
    with torch.no_grad():
        masks,regions,fakes = compose(nets, x, z, o)
        d,rec = judge(nets['netDX'], fakes.flatten(0,1), o).view(len(x), -1),recover(nets['netRecZ'], regions.sum(1), o)
    return {f'eval.{k}': v.float().contiguous() for k,v in dict(masks=masks, regions=regions, fakes=fakes, d_fakes=d, z_rec=rec).items()}

def check_networks(folder):
    "Largest relative difference between this transcription and a folder of fixtures"
    worst,rel = {},lambda a,b: (torch.as_tensor(a)-torch.as_tensor(b)).abs().max().item()/torch.as_tensor(b).abs().max().item()
    for f in sorted(folder.glob('*.json')):
        fix,io = json.loads(f.read_text()),load_file(folder/f'{f.stem}.io.safetensors')
        with torch.serialization.safe_globals([argparse.Namespace]): raw = torch.load(folder/f'{f.stem}.init_nets_state.pth', weights_only=True)
        nets = {k: Net(raw[k]) for k in NETS}
        got = train(nets, io, len(fix['trace']), fix['options'])
        errs = [rel(a[k], b[k]) for a,b in zip(got, fix['trace']) for k in b if k != 'grad_norm']
        errs += [rel(a['grad_norm'][k], v) for a,b in zip(got, fix['trace']) for k,v in b['grad_norm'].items()]
        out = final(nets, io, fix['options'])
        worst[f.stem] = max(*errs, *(rel(v, io[k]) for k,v in out.items()))
    return worst

def write_networks(folder):
    "Two narrow cases: with attention and one sigmoid at 64 pixels, three regions by softmax at 32"
    folder.mkdir(parents=True, exist_ok=True)
    narrow = dict(nz=4, nfM=8, nfX=2, nfD=2, nfZ=2)
    cases = dict(two_regions=(2, 2, 2, narrow|dict(sizex=64, nMasks=2, nResM=3, useSelfAttD=True, useSelfAttG=True, temperature=1.)),
        three_regions_no_attention=(3, 2, 2, narrow|dict(sizex=32, nMasks=3, nResM=2, useSelfAttD=False, useSelfAttG=False, temperature=2.)))
    for seed,(name,(n,bs,n_eval,change)) in enumerate(cases.items()):
        torch.manual_seed(seed)
        o = OPTIONS|change|dict(batchSize=bs, iteration=n)
        def pictures(b): # soft shapes
            low = F.interpolate(torch.randn(b, 3, 6, 6), (o['sizex'],)*2, mode='bicubic', align_corners=False)
            return (.7*low+.1*torch.randn_like(low)).tanh()
        def latents(b): return torch.randn(b, o['nMasks'], o['nz'])
        io = {f'step{s}.{k}': v for s in range(n) for k,v in dict(x=pictures(bs), x_real=pictures(bs), z=latents(bs)).items()}
        io |= {'eval.x': pictures(n_eval), 'eval.z': latents(n_eval)}
        nets = {k: Net() for k in NETS}
        for w in nets.values(): w.train = False # making the tensors moves none
        with torch.no_grad():
            _,regions,fakes = compose(nets, io['eval.x'].double(), io['eval.z'].double(), o)
            judge(nets['netDX'], fakes.flatten(0,1), o); recover(nets['netRecZ'], regions.sum(1), o)
        for w in nets.values(): w.train,w.new = True,False
        def save(what, keys=NETS):
            state = {k: nets[k].state() for k in keys}
            torch.save(state|dict(options=argparse.Namespace(**o)), folder/f'{name}.{what}_state.pth', _use_new_zipfile_serialization=False)
        save('init_nets')
        trace = train(nets, io, n, o)
        out = final(nets, io, o)
        for what,keys in (('nets',NETS), ('netM',('netEncM',)), ('netX',('netGenX',)))[:1 if seed else 3]: save(what, keys)
        save_file(io|out, folder/f'{name}.io.safetensors')
        (folder/f'{name}.json').write_text(json.dumps(dict(options=o, trace=trace, source='tests/make_fixtures.py', dtype='float64'), indent=1)+'\n')

def nearest(a, size):
    "Short side to `size` by the nearest pixel, then the middle; positions are added up as Pillow does, which decides where two pixels are as near"
    h,w = a.shape[:2]
    H,W = (size, int(size*w/h)) if h <= w else (int(size*h/w), size)
    y,x = [np.cumsum([m/n/2]+[m/n]*(n-1)).astype(int) for n,m in ((H,h), (W,w))]
    top,left = round((H-size)/2),round((W-size)/2)
    return a[y][:,x][top:top+size,left:left+size]

def truth_flowers(f):
    a = np.asarray(Image.open(f).convert('RGB'))
    return ~((a[...,0] == 0) | (a[...,1] == 0) | (a[...,2] == 254))
def truth_cub(f):
    a = np.asarray(Image.open(f))
    return (a if a.ndim == 2 else a[...,0]) > 127.5
def truth_lfw(f): return np.asarray(Image.open(f))[...,2] == 0

def listed(d, name):
    "Split -> [(picture, truth)]"
    if name == 'flowers':
        ids,pair = loadmat(d/'setid.mat'),lambda i: (d/f'jpg/image_{i:05d}.jpg', d/f'segmim/segmim_{i:05d}.jpg')
        return {s: [pair(i) for i in ids[k][0]] for s,k in (('train','tstid'), ('val','valid'), ('test','trnid'))}
    if name == 'cub':
        files = [l.split()[1] for l in (d/'images.txt').read_text().splitlines()]
        part = [int(l.split()[1]) for l in (d/'train_val_test_split.txt').read_text().splitlines()]
        pair = lambda f: (d/'images'/f, (d/'segmentations'/f).with_suffix('.png'))
        return {s: [pair(f) for f,p in zip(files, part) if p == i] for i,s in enumerate(('train','val','test'))}
    words = {s: [l.split() for l in (d/f'{s}.txt').read_text().splitlines()] for s in ('train','val','test')}
    return {s: [(d/'lfw_funneled'/a/f'{b}.jpg', d/'parts_lfw_funneled_gt_images'/f'{b}.ppm') for a,b in v] for s,v in words.items()}

def expected(d, name, size):
    "What the reference loaders give, by indexing alone; for faces to learn from, whose truth means nothing, zeros"
    truth,res = globals()[f'truth_{name}'],{}
    for split,files in listed(d, name).items():
        for i,(pic,mask) in enumerate(files):
            a = nearest(np.asarray(Image.open(pic).convert('RGB')), size)
            m = np.zeros((size,size), bool) if (name,split) == ('lfw','train') else nearest(truth(mask), size)
            res[f'{split}.{i}.image'] = torch.from_numpy(a.astype(np.float32)/127.5-1).permute(2,0,1).contiguous()
            res[f'{split}.{i}.mask'] = torch.from_numpy(m.astype(np.float32))[None].contiguous()
    return res

def check_datasets(folder):
    worst = {}
    for name in ('flowers','cub','lfw'):
        want = load_file(folder/f'{name}.expected.safetensors')
        got = expected(folder/name, name, want['train.0.image'].shape[-1])
        assert set(got) == set(want)
        worst[name] = max((got[k]-want[k]).abs().max().item() for k in want if not (name == 'lfw' and k.startswith('train') and k.endswith('mask')))
    return worst

SIZES = [(67,50),(45,61),(63,63),(57,35),(38,38),(65,33)] # no pixel of the result lies between two of the picture

def draw(size, seed):
    "A drawn picture and the mask of its shape"
    rng = np.random.default_rng(seed)
    w,h = size
    ramp = np.linspace(0, 1, h)[:,None,None]*rng.integers(40, 120, 3) + rng.integers(0, 60, 3) + rng.normal(0, 6, (h,w,3))
    mask = Image.new('L', size)
    cx,cy,r,n = w*rng.uniform(.4,.6),h*rng.uniform(.4,.6),min(size)*rng.uniform(.3,.42),int(rng.integers(4, 9))
    t = np.linspace(0, 2*math.pi, 120, endpoint=False)
    k = r*(.75+.25*np.cos(n*t))
    ImageDraw.Draw(mask).polygon([tuple(p) for p in np.stack([cx+k*np.cos(t), cy+k*np.sin(t)], 1)], fill=255)
    body = rng.integers(150, 250, 3) + rng.normal(0, 8, (h,w,3))
    return Image.fromarray(np.where(np.asarray(mask)[...,None] > 0, body, ramp).clip(5, 250).astype(np.uint8)),mask

def write_datasets(folder, size=32):
    "Six drawn pictures a set, in the layouts of Flowers-102, CUB-200-2011 and LFW"
    def put(im, *parts, **kw):
        f = folder.joinpath(*parts)
        f.parent.mkdir(parents=True, exist_ok=True)
        im.save(f, **kw)
    blue = lambda im,m: Image.composite(im, Image.new('RGB', im.size, (0,0,254)), m)
    for i,s in enumerate(SIZES):
        im,m = draw(s, i)
        put(im, 'flowers', 'jpg', f'image_{i+1:05d}.jpg', quality=90)
        put(blue(im, m), 'flowers', 'segmim', f'segmim_{i+1:05d}.jpg', quality=95, subsampling=0)
    savemat(folder/'flowers'/'setid.mat', dict(tstid=[[4,5,6]], valid=[[3]], trnid=[[1,2]]))
    names = [f'{"001.Black_footed_Albatross" if i%2 == 0 else "002.Laysan_Albatross"}/bird_{i:04d}' for i in range(6)]
    for i,(n,s) in enumerate(zip(names, SIZES[::-1])):
        im,m = draw(s, 10+i)
        put(im.convert('L') if i == 4 else im, 'cub', 'images', f'{n}.jpg', quality=90)
        a = np.asarray(m).astype(float)
        soft = Image.fromarray(((a + np.roll(a, 2, 1) + np.roll(a, 2, 0) + np.roll(a, (1,1), (0,1)))/4).astype(np.uint8)) # four annotators
        put(soft.convert({2: 'LA', 3: 'RGBA'}.get(i, 'L')), 'cub', 'segmentations', f'{n}.png')
    (folder/'cub'/'images.txt').write_text(''.join(f'{i+1} {n}.jpg\n' for i,n in enumerate(names)))
    (folder/'cub'/'train_val_test_split.txt').write_text(''.join(f'{i+1} {p}\n' for i,p in enumerate((0,0,0,1,2,2))))
    faces = [f'{n}_{i:04d}' for n in ('Ada_Doe','Bo_Roe','Cy_Poe') for i in (1,2)]
    for i,n in enumerate(faces):
        im,m = draw((50,50), 20+i)
        a,half = np.asarray(m) > 0,np.arange(50)[:,None] < 25
        put(im, 'lfw', 'lfw_funneled', n[:-5], f'{n}.jpg', quality=90)
        put(Image.fromarray(np.stack([a & half, a & ~half, ~a], 2).astype(np.uint8)*255), 'lfw', 'parts_lfw_funneled_gt_images', f'{n}.ppm')
    for split,ids in dict(train=(0,2,4), val=(1,), test=(3,5)).items():
        (folder/'lfw'/f'{split}.txt').write_text(''.join(f'{faces[i][:-5]} {faces[i]}\n' for i in ids))
    for name in ('flowers','cub','lfw'): save_file(expected(folder/name, name, size), folder/f'{name}.expected.safetensors')

if __name__ == '__main__':
    reference = Path(os.environ.get('REDO_SHARED', root.parent/'shared'))/'fixtures'/'redo'
    if not reference.exists(): raise SystemExit(f'{reference} is not here: set REDO_SHARED to the folder that holds fixtures/redo')
    apart = dict(networks=check_networks(reference/'networks'), datasets=check_datasets(reference/'datasets'))
    print('from the reference:', apart)
    # the reference's numbers are float32; these are float64
    if max(apart['networks'].values()) > 3e-4 or any(apart['datasets'].values()): raise SystemExit('this is not what the reference does; nothing was written')
    shutil.rmtree(own, ignore_errors=True)
    write_networks(own/'networks')
    write_datasets(own/'datasets')
    for o in ('mask_regularizers','segmentation_scores'):
        for ending in ('json','safetensors'): shutil.copyfile(reference/f'{o}.{ending}', own/f'{o}.{ending}')
    print(sum(o.stat().st_size for o in own.rglob('*'))//1024, 'KiB in', own)

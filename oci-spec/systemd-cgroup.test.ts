import assert from 'node:assert/strict';
import { parseRuntimeConfig } from './runtime-config.js';
import { expandSlice, systemdCgroup } from './systemd-cgroup.js';

const at = (
  cgroupsPath: string | undefined,
  family: 'runc' | 'crun' = 'runc',
  annotations: Record<string, string> = {},
): ReturnType<typeof systemdCgroup> =>
  systemdCgroup(
    parseRuntimeConfig(JSON.stringify({ root: { path: 'r' }, annotations, linux: { cgroupsPath } })),
    'c1',
    family,
  );

describe('systemd cgroups', () => {
  it('are scopes in slices, each slice in the one that its name begins with', () => {
    assert.deepEqual(at('machine.slice:libpod:abc'), {
      slice: 'machine.slice',
      scope: 'libpod-abc.scope',
      description: 'libcontainer container abc',
      scopePath: '/machine.slice/libpod-abc.scope',
      path: '/machine.slice/libpod-abc.scope',
      properties: [],
    });
    assert.equal(
      at('kubepods-besteffort-pod1.slice:cri-containerd:abc').path,
      '/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-abc.scope',
    );
    assert.equal(at('-.slice:docker:abc').path, '/docker-abc.scope');
  });

  it('have defaults', () => {
    assert.equal(at(undefined).path, '/system.slice/runc-c1.scope');
    assert.equal(at(':docker:abc').path, '/system.slice/docker-abc.scope');
  });

  it('have a cgroup of their own in the scope under crun', () => {
    assert.equal(at('machine.slice:libpod:abc', 'crun').scopePath, '/machine.slice/libpod-abc.scope');
    assert.equal(at('machine.slice:libpod:abc', 'crun').path, '/machine.slice/libpod-abc.scope/container');
    assert.equal(at(undefined, 'crun').path, '/system.slice/crun-c1.scope/container');
    const within = (name: string): string => at(undefined, 'crun', { 'run.oci.systemd.subgroup': name }).path;
    assert.equal(within(''), '/system.slice/crun-c1.scope');
    assert.equal(within('../../x'), '/system.slice/crun-c1.scope/x');
  });

  it('are refused in any other form', () => {
    for (const path of ['/a/b', 'a.slice:b', 'a.slice:b:c:d'])
      assert.throws(() => at(path), /linux.cgroupsPath must be "slice:prefix:name" for systemd cgroups/, path);
    for (const slice of ['a', '.slice', 'a/b.slice', '-a.slice', 'a-.slice', 'a--b.slice', '../x.slice', 'a.slice/'])
      assert.throws(() => expandSlice(slice), /linux.cgroupsPath names no slice/, slice);
    assert.throws(() => at('a.slice:x:../../y'), /a unit with a slash/);
    assert.throws(() => at('a.slice:x:b.slice'), /a slice, which takes no processes/);
  });
});

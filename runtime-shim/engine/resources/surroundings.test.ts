import assert from 'node:assert/strict';
import { gzipSync } from 'node:zlib';
import type { Capture, MountNamespace, TmpfsEntry } from '../../../nativecore/schema/messages.js';
import { fstype, type mnt_entry } from '../../../oci-spec/images/messages.js';
import { StasisError } from '../../errors/index.js';
import type { CompileContext, ImageModel } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { ImageSetWriter } from '../image-set.js';
import { Phase } from '../plan/builder.js';
import { FileFixture, objectionsOf, statx, stepsOf } from './file-fixture.js';
import { parseMountinfo } from './mountinfo.js';
import { writeTar, type NewTarEntry } from './tar.js';

// What the kernel showed of a container of runc 1.1.5 with the default spec, on cgroup v2.
const runcMountinfo = `66 49 254:0 /bundle/rootfs / rw,relatime - ext4 /dev/vda rw,discard
67 66 0:40 / /proc rw,relatime - proc proc rw
68 66 0:41 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
69 68 0:42 / /dev/pts rw,nosuid,noexec,relatime - devpts devpts rw,gid=5,mode=620,ptmxmode=666
70 68 0:43 / /dev/shm rw,nosuid,nodev,noexec,relatime - tmpfs shm rw,size=65536k
71 68 0:39 / /dev/mqueue rw,nosuid,nodev,noexec,relatime - mqueue mqueue rw
72 66 0:44 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
73 72 0:38 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw
50 67 0:40 /bus /proc/bus ro,relatime - proc proc rw
53 67 0:40 /sys /proc/sys ro,relatime - proc proc rw
54 67 0:45 / /proc/acpi ro,relatime - tmpfs tmpfs ro
55 67 0:41 /null /proc/keys rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
57 72 0:46 / /sys/firmware ro,relatime - tmpfs tmpfs ro
`;

const none = new Uint8Array(0);

function tmpfsEntry(
  path: string,
  mode: number,
  more: Partial<TmpfsEntry> & { readonly rdev?: bigint } = {},
): TmpfsEntry {
  const { rdev, ...rest } = more;
  return {
    path: Buffer.from(path),
    stat: statx({ mode, ...(rdev === undefined ? {} : { rdev }) }),
    content: none,
    linkTarget: none,
    hardLinkTo: none,
    attributes: [],
    ...rest,
  };
}

const rootEntry = tmpfsEntry('.', 0o40755);
const deviceContent = [
  rootEntry,
  tmpfsEntry('null', 0o20666, { rdev: 0x100003n }),
  tmpfsEntry('pts', 0o40755),
  tmpfsEntry('fd', 0o120777, { linkTarget: Buffer.from('/proc/self/fd') }),
];

function containerWith(
  mountinfo: string,
  parts: Partial<Capture> = {},
  devContent: TmpfsEntry[] = deviceContent,
): FileFixture {
  const tmpfs = parseMountinfo(Buffer.from(mountinfo))
    .filter((mount) => mount.type === 'tmpfs' && mount.root === '/')
    .map((mount) => ({
      mountPoint: mount.mountPoint,
      device: BigInt(mount.device),
      entries: mount.mountPoint === '/dev' ? devContent : [rootEntry],
    }));
  const namespace: MountNamespace = { inode: 204n, hostPid: 1001, mountinfo: Buffer.from(mountinfo), tmpfs };
  const fixture = new FileFixture({
    mountNamespaces: [namespace],
    utsNamespaces: [{ inode: 203n, nodename: Buffer.from('web'), domainname: Buffer.from('(none)') }],
    ...parts,
  });
  for (const kind of ['pid', 'net', 'ipc', 'uts', 'mnt']) fixture.newNamespaces.add(kind);
  fixture.task({ nsPid: 1 });
  return fixture;
}

function mountsOf(ctx: EncodeContext, model: ImageModel): mnt_entry[] {
  return model.set.messages('mountpoints', ctx.namespaceId('mnt', 204n));
}

/** Where each move_mount puts a mount, in order. */
function placesOf(ctx: CompileContext): string[] {
  const steps =
    ctx.tasks
      .get(1)
      ?.builder.message()
      .phases?.find((phase) => phase?.phase === Phase.NAMESPACES)?.steps ?? [];
  return steps.filter((step) => step?.op === 'move_mount').map((step) => step?.note ?? '');
}

function hostileMounts(change: (entries: mnt_entry[]) => mnt_entry[]): () => CompileContext {
  const fixture = containerWith(runcMountinfo);
  const encoded = fixture.encode();
  const entries = change(mountsOf(encoded, fixture.model(encoded)));
  const model = fixture.model(encoded, (files) => {
    const writer = new ImageSetWriter();
    const id = encoded.namespaceId('mnt', 204n);
    for (const entry of entries) writer.add('mountpoints', id, entry);
    files.delete(`mountpoints-${id}.img`);
    for (const file of writer.files()) files.set(file.name, file.bytes);
  });
  return () => fixture.compile({}, model);
}

function hostileTmpfs(archive: Uint8Array): () => CompileContext {
  const fixture = containerWith(runcMountinfo);
  const model = fixture.model(fixture.encode(), (files) => files.set('tmpfs-dev-41.tar.gz.img', archive));
  return () => fixture.compile({}, model);
}

const tarEntry = (name: string, type: NewTarEntry['type'], linkName = ''): NewTarEntry => ({
  name: Buffer.from(name),
  type,
  mode: 0o755,
  uid: 0,
  gid: 0,
  mtimeNs: 0n,
  content: none,
  linkName: Buffer.from(linkName),
  deviceMajor: 0,
  deviceMinor: 0,
  attributes: new Map(),
});

const isCorrupt = (error: unknown): boolean => error instanceof StasisError && error.code === 'IMAGE_CORRUPT';

describe('mounts', () => {
  it('reads mountinfo with escapes, peer groups and colons', () => {
    const [mount] = parseMountinfo(
      Buffer.from('30 20 8:17 /a\\040b /mnt\\011x rw,noatime shared:5 master:2 - fuse.x none rw,user=1\n'),
    );
    assert.deepEqual(mount, {
      id: 30,
      parentId: 20,
      device: (8 << 20) | 17,
      root: '/a b',
      mountPoint: '/mnt\tx',
      options: ['rw', 'noatime'],
      sharedId: 5,
      masterId: 2,
      unbindable: false,
      type: 'fuse.x',
      source: 'none',
      superOptions: ['rw', 'user=1'],
    });
  });

  it('writes entries as the format has them: last first, flags apart from options', () => {
    const fixture = containerWith(runcMountinfo);
    const ctx = fixture.encode();
    assert.deepEqual(objectionsOf(ctx), []);
    const entries = mountsOf(ctx, fixture.model(ctx));
    assert.equal(entries.length, 13);
    assert.equal(entries[0]?.mountpoint, '/sys/firmware');
    const pts = entries.find((entry) => entry.mountpoint === '/dev/pts');
    assert.equal(pts?.fstype, fstype.DEVPTS);
    assert.equal(pts.options, 'gid=5,mode=620,ptmxmode=666');
    assert.equal(pts.flags, 2 | 8 | (1 << 21) | (1 << 18));
    assert.equal(entries.find((entry) => entry.mountpoint === '/sys')?.sb_flags, 1);
  });

  it('puts every mount to its place, parents first, binds after what they are bound from', () => {
    const ctx = containerWith(runcMountinfo).compile();
    assert.deepEqual(objectionsOf(ctx), []);
    assert.deepEqual(placesOf(ctx), [
      '/rootfs',
      '/proc',
      '/dev',
      '/dev/pts',
      '/dev/shm',
      '/dev/mqueue',
      '/sys',
      '/sys/fs/cgroup',
      '/proc/bus',
      '/proc/sys',
      '/proc/acpi',
      '/proc/keys',
      '/sys/firmware',
    ]);
    const steps = stepsOf(ctx, 1, Phase.NAMESPACES);
    assert.deepEqual(
      steps
        .slice(-20)
        .filter((step) => !step.startsWith('close'))
        .slice(-4),
      ['fchdir s1', 'pivot_root "." "."', 'umount2 "." 2', 'chdir "/"'],
    );
    assert.equal(ctx.tasks.get(1)?.builder.cloneFlags, 0x20000000n | 0x08000000n | 0x04000000n | 0x00020000n);
  });

  it('fills a tmpfs before it becomes read-only', () => {
    const readOnly = runcMountinfo.replace(
      '/dev rw,nosuid - tmpfs tmpfs rw,size',
      '/dev rw,nosuid - tmpfs tmpfs ro,size',
    );
    const steps = stepsOf(containerWith(readOnly).compile(), 1, Phase.NAMESPACES);
    const made = steps.findIndex((step) => /^mknodat s\d+ "null" 8630 259$/.test(step));
    const reconfigured = steps.findIndex((step) => /^fsconfig s\d+ 7 /.test(step));
    assert.ok(made > 0 && made < reconfigured, steps.join('\n'));
    assert.ok(steps.some((step) => /^symlinkat "\/proc\/self\/fd" s\d+ "fd"$/.test(step)));
  });

  it('looks every mount point up below the new root', () => {
    const ctx = containerWith(runcMountinfo).compile();
    const opens = stepsOf(ctx, 1, Phase.NAMESPACES).filter((step) => step.startsWith('openat2'));
    for (const open of opens) {
      const resolve = Buffer.from(/<([0-9a-f]+)>/.exec(open)?.[1] ?? '', 'hex').readBigUInt64LE(16);
      // In the root and without magic links, or strictly inside of one mount.
      assert.ok(resolve === 0x12n || resolve === 0xfn || resolve === 0xdn, open);
    }
  });

  it('binds an external mount from the host path of the restoring side', () => {
    const info = `${runcMountinfo}60 66 254:0 /var/lib/data /data rw,relatime - ext4 /dev/vda rw\n`;
    const fixture = containerWith(info);
    const ctx = fixture.encode({ externalMounts: new Map([['/data', '/data']]) });
    assert.deepEqual(objectionsOf(ctx), []);
    const plan = fixture.compile({ externalMounts: new Map([['/data', '/srv/data']]) }, fixture.model(ctx));
    assert.ok(stepsOf(plan, 1, Phase.NAMESPACES).includes('open_tree -100 "/srv/data" 524289'));
    assert.match(objectionsOf(fixture.compile({}, fixture.model(ctx)))[0] ?? '', /"\/data" is provided from outside/);
  });

  it('makes missing mount points of the kind that the restoring side says', () => {
    const info = `${runcMountinfo}60 66 254:0 /etc/hosts /etc/hosts rw,relatime - ext4 /dev/vda rw\n`;
    const fixture = containerWith(info);
    const ctx = fixture.encode({ externalMounts: new Map([['/etc/hosts', '/etc/hosts']]) });
    const plan = fixture.compile(
      { externalMounts: new Map([['/etc/hosts', '/h']]), externalFileMounts: new Set(['/etc/hosts']) },
      fixture.model(ctx),
    );
    const steps = stepsOf(plan, 1, Phase.NAMESPACES);
    assert.ok(steps.some((step) => /^mkdirat s\d+ "etc" 493$/.test(step)));
    assert.ok(steps.some((step) => /^mknodat s\d+ "hosts" 33188 0$/.test(step)));
  });

  it('refuses every mount that it cannot carry, by mount point', () => {
    const info = `${runcMountinfo}60 66 0:60 / /debug rw - debugfs none rw
61 66 254:1 /x /data rw - ext4 /dev/vdb rw
62 66 254:0 /bundle/rootfs/gone//deleted /gone rw - ext4 /dev/vda rw
`;
    const objections = objectionsOf(containerWith(info).encode());
    assert.deepEqual(
      objections.map((text) => text.replace(/,.*$/, '')),
      [
        'mount "/debug" is a file system of type debugfs',
        'mount "/data" is bound from "/x" of a ext4 file system outside of the container',
        'mount "/gone" is bound from a file or directory that has been deleted',
      ],
    );
  });

  it('carries a directory of the root file system that is bound elsewhere in it', () => {
    const info = `${runcMountinfo}61 66 254:0 /bundle/rootfs/srv /data ro - ext4 /dev/vda rw\n`;
    const fixture = containerWith(info);
    assert.deepEqual(objectionsOf(fixture.encode()), []);
    const steps = stepsOf(fixture.compile(), 1, Phase.NAMESPACES);
    assert.ok(
      steps.some((step) => /^openat2 s\d+ "srv" /.test(step)),
      steps.join('\n'),
    );
  });

  it('refuses mount entries that do not make a tree', () => {
    for (const change of [
      (entries: mnt_entry[]) => entries.filter((entry) => entry.mountpoint !== '/'),
      (entries: mnt_entry[]) => entries.filter((entry) => entry.mountpoint !== '/dev'),
      (entries: mnt_entry[]) => [...entries, ...entries],
      (entries: mnt_entry[]) => entries.map((entry) => ({ ...entry, mountpoint: entry.mountpoint.slice(1) })),
      () => [],
    ])
      assert.throws(hostileMounts(change), isCorrupt);
  });

  it('refuses tmpfs archives that lead out of the mount, lie or are damaged', () => {
    const archives: readonly NewTarEntry[][] = [
      [tarEntry('../etc/passwd', 'file')],
      [tarEntry('a', 'symlink', '/etc'), tarEntry('a/b', 'file')],
      [tarEntry('a/b', 'file')],
      [tarEntry('a', 'file'), tarEntry('a', 'directory')],
      [tarEntry('a', 'link', '../../etc/shadow')],
      [tarEntry('', 'file')],
    ];
    for (const entries of archives) assert.throws(hostileTmpfs(gzipSync(writeTar(entries))), isCorrupt);
    assert.throws(hostileTmpfs(Buffer.from('not gzip')), isCorrupt);
    // Many members of zeros, as gzip allows: 640 MiB out of 640 KiB.
    const zeros = gzipSync(Buffer.alloc(16 * 1024 * 1024));
    assert.throws(hostileTmpfs(Buffer.concat(new Array<Buffer>(40).fill(zeros))), isCorrupt);
  }).timeout(10_000);
});

function linkMessage(index: number, flags: number, name: string): Buffer {
  const bytes = Buffer.alloc(16 + 4 + 16);
  bytes.writeInt32LE(index, 4);
  bytes.writeUInt32LE(flags, 8);
  bytes.writeUInt16LE(4 + name.length + 1, 16);
  bytes.writeUInt16LE(3, 18);
  bytes.write(name, 20, 'latin1');
  return bytes;
}

const network = { inode: 201n, unixSockets: [] };

describe('namespaces', () => {
  it('brings a new network namespace up with its loopback', () => {
    const fixture = containerWith(runcMountinfo, {
      netNamespaces: [{ ...network, links: [linkMessage(1, 0x10049, 'lo')] }],
    });
    const ctx = fixture.compile();
    const steps = stepsOf(ctx, 1, Phase.NAMESPACES);
    const unshare = steps.indexOf(`unshare ${0x40000000}`);
    assert.ok(unshare > 0 && (steps[unshare + 2] ?? '').startsWith('ioctl s'), steps.join('\n'));
    // sysfs shows the network namespace of whoever mounts it.
    assert.ok(unshare < steps.findIndex((step) => step === 'fsopen "sysfs" 1'));
  });

  it('refuses other interfaces of an own network namespace, but not of an empty one', () => {
    const links = [linkMessage(1, 0x10049, 'lo'), linkMessage(2, 0x1043, 'eth0')];
    const fixture = containerWith(runcMountinfo, { netNamespaces: [{ ...network, links }] });
    assert.match(objectionsOf(fixture.encode())[0] ?? '', /interface "eth0"/);
    assert.deepEqual(objectionsOf(fixture.encode({ emptyNetNamespace: true })), []);
  });

  it('joins a network namespace that the restoring side gives', () => {
    const fixture = containerWith(runcMountinfo);
    const encoded = fixture.encode({ externalNamespaces: new Map([['net', 'extRootNetNS']]) });
    const ctx = fixture.compile({ inherited: new Map([['extRootNetNS', 12]]) }, fixture.model(encoded));
    const steps = stepsOf(ctx, 1, Phase.NAMESPACES);
    assert.ok(steps.includes(`setns s1 ${0x40000000}`), steps.join('\n'));
    assert.ok(!steps.some((step) => step.startsWith('unshare')));
    assert.match(
      objectionsOf(fixture.compile({}, fixture.model(encoded)))[0] ?? '',
      /"extRootNetNS", and none is given/,
    );
  });

  it('sets host and domain names', () => {
    const steps = stepsOf(containerWith(runcMountinfo).compile(), 1, Phase.NAMESPACES);
    assert.ok(steps.includes(`sethostname <${Buffer.from('web').toString('hex')}> 3`));
  });

  it('writes only those IPC sysctls that differ from a fresh namespace', () => {
    const sysctls = [
      { name: 'kernel/shmmni', value: Buffer.from('4096\n') },
      { name: 'kernel/sem', value: Buffer.from('32000\t1024000000\t500\t128\n') },
    ];
    const ipc = { inode: 202n, sysvipcShm: none, sysvipcMsg: none, sysvipcSem: none, sysctls, semaphores: [] };
    const steps = stepsOf(containerWith(runcMountinfo, { ipcNamespaces: [ipc] }).compile(), 1, Phase.NAMESPACES);
    assert.deepEqual(
      steps.filter((step) => step.includes('/proc/sys/')),
      ['openat -100 "/proc/sys/kernel/sem" 524289 0'],
    );
  });

  const segmentTable = Buffer.from(
    `       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid
      4660      65537   640                 20490     1     1      2   999   998   999   998
-1010101010          3  1600                  8192     1     1      2     0     0     7     0
`,
  );
  const segmentOf = (inode: bigint): NonNullable<Capture['sharedMemory']>[number] => ({
    link: Buffer.from('/SYSV00001234 (deleted)'),
    stat: statx({ device: 1n, inode, sizeBytes: 20490n }),
    seals: 1,
  });

  it('makes System V shared memory with its ids, keys, owners and modes', () => {
    const ipc = {
      inode: 202n,
      sysvipcShm: segmentTable,
      sysvipcMsg: none,
      sysvipcSem: none,
      sysctls: [],
      semaphores: [],
    };
    const sharedMemory = [segmentOf(65537n), segmentOf(3n)];
    const fixture = containerWith(runcMountinfo, { ipcNamespaces: [ipc], sharedMemory });
    const encoded = fixture.encode();
    assert.deepEqual(objectionsOf(encoded), []);
    // created by uid 7, and owned by root
    assert.deepEqual(
      encoded.degradations.map(({ code }) => code),
      ['SEGMENT_CREATOR_LOST'],
    );
    const steps = stepsOf(fixture.compile({}, fixture.model(encoded)), 1, Phase.NAMESPACES);
    const made = steps.filter((step) => /shm(get|ctl)|shm_next_id|^write/.test(step));
    const bytes = (text: string): string => `<${Buffer.from(text).toString('hex')}>`;
    assert.deepEqual(
      made.map((step) =>
        step
          .replace(/s\d+/, 'f')
          .replace(/<0+e7030000.*>/, '<owners>')
          .replace(/<0{40,}.*>/, '<owners>'),
      ),
      [
        'openat -100 "/proc/sys/kernel/shm_next_id" 524289 0',
        `write f ${bytes('65537')} 5`,
        'shmget 4660 20490 1952',
        'shmctl 65537 1 <owners>',
        'openat -100 "/proc/sys/kernel/shm_next_id" 524289 0',
        `write f ${bytes('3')} 1`,
        // removed while attached, so without its key
        'shmget 0 8192 1920',
        'shmctl 3 1 <owners>',
      ],
    );
  });

  it('makes System V semaphores with their ids, keys and values', () => {
    const sysvipcSem = Buffer.from(
      'key semid perms nsems uid gid cuid cgid otime ctime\n 17 65538 640 3 999 998 999 998 0 0\n',
    );
    const semaphores = [{ id: 65538, values: Buffer.from([1, 0, 2, 0, 255, 127]) }];
    const ipc = { inode: 202n, sysvipcShm: none, sysvipcMsg: none, sysvipcSem, sysctls: [], semaphores };
    const fixture = containerWith(runcMountinfo, { ipcNamespaces: [ipc] });
    const encoded = fixture.encode();
    assert.deepEqual(objectionsOf(encoded), []);
    const made = stepsOf(fixture.compile({}, fixture.model(encoded)), 1, Phase.NAMESPACES).filter((step) =>
      /^sem|sem_next_id/.test(step),
    );
    assert.equal(made.length, 4);
    assert.match(made[0]!, /sem_next_id/);
    assert.equal(made[1], 'semget 17 3 1952');
    assert.equal(made[2], 'semctl 65538 0 17 <01000200ff7f>');
    assert.match(made[3]!, /^semctl 65538 0 1 <00000000e7030000e6030000/);
  });

  it('refuses images whose segments nobody could have', () => {
    const ipc = {
      inode: 202n,
      sysvipcShm: segmentTable,
      sysvipcMsg: none,
      sysvipcSem: none,
      sysctls: [],
      semaphores: [],
    };
    const fixture = containerWith(runcMountinfo, {
      ipcNamespaces: [ipc],
      sharedMemory: [segmentOf(65537n), segmentOf(3n)],
    });
    const encoded = fixture.encode();
    const changed = (change: object): CompileContext => {
      const model = fixture.model(encoded, (files) => {
        const images = new ImageSetWriter();
        const desc = { key: 1, uid: 0, gid: 0, cuid: 0, cgid: 0, mode: 0o600, id: 3 };
        images.add('ipcns-shm', 5, { desc, size: 4096n, in_pagemaps: true, ...change });
        for (const name of files.keys()) if (name.startsWith('ipcns-shm')) files.set(name, images.files()[0]!.bytes);
      });
      return fixture.compile({}, model);
    };
    assert.match(objectionsOf(changed({ in_pagemaps: false }))[0] ?? '', /has its content in an old form/);
    assert.match(objectionsOf(changed({ hugetlb_flag: 4 }))[0] ?? '', /huge pages/);
    assert.throws(() => changed({ size: 0n }), /impossible segment 3/);
    assert.throws(() => changed({ size: 1n << 60n }), /impossible segment 3/);
  });

  it('refuses System V objects whose content is not carried, by kind and id', () => {
    const sysvipcShm = Buffer.from(
      'key shmid perms size cpid lpid nattch uid gid cuid cgid\n 0 3 600 4096 1 1 0 0 0 0 0\n',
    );
    const sysvipcSem = Buffer.from('key semid perms nsems uid gid cuid cgid otime ctime\n 0 9 600 2 0 0 0 0 0 0\n');
    const sysvipcMsg = Buffer.from('key msqid perms\n 0 4 600\n');
    const ipc = { inode: 202n, sysvipcShm, sysvipcMsg, sysvipcSem, sysctls: [], semaphores: [] };
    const objections = objectionsOf(containerWith(runcMountinfo, { ipcNamespaces: [ipc] }).encode());
    assert.match(objections[0] ?? '', /shared memory segment 3 is made of huge pages/);
    assert.match(objections[1] ?? '', /values of the System V semaphore set 9 could not be read/);
    assert.match(objections[2] ?? '', /message queue \(id 4\)/);
  });

  it('refuses a task in a namespace or cgroup of its own', () => {
    const fixture = containerWith(runcMountinfo);
    fixture.task({ nsPid: 2, parent: 1, namespaces: { net: 999n }, cgroup: '0::/c/sub\n' });
    const objections = objectionsOf(fixture.encode());
    assert.match(objections[0] ?? '', /another net namespace/);
    assert.match(objections[1] ?? '', /in cgroup "\/c\/sub" \(cgroup v2\)/);
  });

  it('becomes root inside of a new user namespace when it has what only the host root can reach', () => {
    const fixture = containerWith(runcMountinfo);
    fixture.tasks.length = 0;
    fixture.newNamespaces.add('user');
    fixture.task({ nsPid: 1 });
    const verbs = stepsOf(fixture.compile(), 1, Phase.NAMESPACES).map((step) => step.split(' ')[0]);
    assert.deepEqual(verbs.slice(0, 7), [
      'umask',
      'mount',
      'open_tree',
      'openat',
      'setresgid',
      'setresuid',
      'sethostname',
    ]);
  });
});

describe('cgroups', () => {
  it('writes the set of the tree and that of the engine', () => {
    const fixture = containerWith(runcMountinfo);
    const ctx = fixture.encode();
    const image = fixture.model(ctx).set.one('cgroup');
    assert.deepEqual(
      image.sets.map((set) => [set.id, set.ctls.map((member) => member.path)]),
      [
        [1, ['/']],
        [2, ['/c']],
      ],
    );
    assert.equal(ctx.draft(ctx.root).core.tc.cg_set, 2);
  });
});

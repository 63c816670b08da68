// linux.resources of a spec as writes to cgroup files, v1 and v2. Pure.
import { cpuSharesToWeight } from '../../oci-spec/libcontainer-config.js';
import type { SpecResources } from '../../oci-spec/runtime-config.js';
import { StasisError } from '../errors/index.js';

export interface LimitWrite {
  readonly file: string;
  readonly text: string;
}

/** By controller, in the order in which the kernel accepts them. */
export function v1Writes(resources: SpecResources | undefined): Map<string, LimitWrite[]> {
  const result = new Map<string, LimitWrite[]>();
  if (resources === undefined) return result;
  const add = (controller: string, file: string, value: number | bigint | string | undefined): void => {
    if (value === undefined || value === 0 || value === '') return;
    const list = result.get(controller) ?? [];
    list.push({ file, text: String(value) });
    result.set(controller, list);
  };
  const { memory, cpu, blockIo } = resources;
  // A fresh memory cgroup is unlimited: memory first, then memory+swap, which may not be smaller.
  add('memory', 'memory.limit_in_bytes', memory.limit);
  add('memory', 'memory.memsw.limit_in_bytes', memory.swap);
  add('memory', 'memory.soft_limit_in_bytes', memory.reservation);
  if (memory.disableOomKiller === true) add('memory', 'memory.oom_control', '1');
  if (memory.swappiness !== undefined) add('memory', 'memory.swappiness', String(memory.swappiness));
  add('cpu', 'cpu.rt_period_us', cpu.realtimePeriod);
  add('cpu', 'cpu.rt_runtime_us', cpu.realtimeRuntime);
  add('cpu', 'cpu.shares', cpu.shares);
  add('cpu', 'cpu.cfs_period_us', cpu.period);
  add('cpu', 'cpu.cfs_quota_us', cpu.quota);
  add('pids', 'pids.max', limitText(resources.pidsLimit));
  add('blkio', 'blkio.weight', blockIo.weight);
  add('blkio', 'blkio.leaf_weight', blockIo.leafWeight);
  for (const device of blockIo.weightDevice) {
    if (device.weight !== undefined)
      add('blkio', 'blkio.weight_device', `${device.major}:${device.minor} ${device.weight}`);
    if (device.leafWeight !== undefined)
      add('blkio', 'blkio.leaf_weight_device', `${device.major}:${device.minor} ${device.leafWeight}`);
  }
  const throttles = [
    ['read_bps', blockIo.throttleReadBps],
    ['write_bps', blockIo.throttleWriteBps],
    ['read_iops', blockIo.throttleReadIops],
    ['write_iops', blockIo.throttleWriteIops],
  ] as const;
  for (const [name, devices] of throttles) {
    for (const { major, minor, rate } of devices)
      add('blkio', `blkio.throttle.${name}_device`, `${major}:${minor} ${rate}`);
  }
  for (const { pageSize, limit } of resources.hugepageLimits)
    add('hugetlb', `hugetlb.${pageSize}.limit_in_bytes`, String(limit));
  add('net_cls', 'net_cls.classid', resources.network.classId);
  for (const { name, priority } of resources.network.priorities)
    add('net_prio', 'net_prio.ifpriomap', `${name} ${priority}`);
  for (const [device, limit] of resources.rdma) add('rdma', 'rdma.max', rdmaText(device, limit));
  return result;
}

/** `controllers`: those that the cgroup has. Throws when a limit needs another. */
export function v2Writes(resources: SpecResources | undefined, controllers: readonly string[]): LimitWrite[] {
  if (resources === undefined) return [];
  const writes: LimitWrite[] = [];
  const add = (file: string, text: string | undefined): void => {
    if (text === undefined || text === '') return;
    const controller = file.split('.')[0]!;
    if (controller !== 'cgroup' && !controllers.includes(controller)) {
      throw new StasisError({
        code: 'KERNEL_FEATURE_MISSING',
        message: `cannot set ${file} to ${text}: the ${controller} cgroup controller is not available`,
        hint: `enable it in cgroup.subtree_control of the parent cgroup, or remove the limit from the bundle`,
      });
    }
    writes.push({ file, text });
  };
  const { memory, cpu, blockIo } = resources;
  add('pids.max', limitText(resources.pidsLimit));
  add('memory.swap.max', swapText(memory.swap ?? 0, memory.limit ?? 0));
  add('memory.max', limitText(memory.limit));
  add('memory.low', limitText(memory.reservation));
  if (blockIo.weight !== undefined && blockIo.weight !== 0) {
    // blkio.weight [10, 1000] onto io.weight [1, 10000].
    add('io.weight', String(1 + Math.floor(((blockIo.weight - 10) * 9999) / 990)));
  }
  const throttles = [
    ['rbps', blockIo.throttleReadBps],
    ['wbps', blockIo.throttleWriteBps],
    ['riops', blockIo.throttleReadIops],
    ['wiops', blockIo.throttleWriteIops],
  ] as const;
  for (const [name, devices] of throttles) {
    for (const { major, minor, rate } of devices) add('io.max', `${major}:${minor} ${name}=${rate}`);
  }
  if (cpu.shares !== undefined && cpu.shares !== 0) add('cpu.weight', String(cpuSharesToWeight(cpu.shares)));
  if ((cpu.quota ?? 0) !== 0 || (cpu.period ?? 0) !== 0) {
    // 100000 us is the kernel's default period.
    add('cpu.max', `${(cpu.quota ?? 0) > 0 ? cpu.quota : 'max'} ${(cpu.period ?? 0) === 0 ? 100000 : cpu.period}`);
  }
  add('cpuset.cpus', cpu.cpus);
  add('cpuset.mems', cpu.mems);
  for (const { pageSize, limit } of resources.hugepageLimits) add(`hugetlb.${pageSize}.max`, String(limit));
  for (const [device, limit] of resources.rdma) add('rdma.max', rdmaText(device, limit));
  for (const [file, text] of Object.entries(resources.unified)) {
    if (file.includes('/')) {
      throw new StasisError({
        code: 'BUNDLE_INVALID',
        message: `cannot set linux.resources.unified ${JSON.stringify(file)}: it must be a file name`,
      });
    }
    add(file, text);
  }
  return writes;
}

function limitText(limit: number | undefined): string | undefined {
  if (limit === undefined || limit === 0) return undefined;
  return limit < 0 ? 'max' : String(limit);
}

/** v1 counts memory and swap together, v2 swap alone. */
function swapText(swap: number, memory: number): string | undefined {
  if (memory === -1 && swap === 0) return 'max';
  if (swap === 0) return undefined;
  if (swap === -1) return 'max';
  if (memory <= 0 || swap < memory) {
    throw new StasisError({
      code: 'BUNDLE_INVALID',
      message: `cannot limit memory and swap to ${swap} bytes: the memory limit is ${memory} bytes, and the sum of both cannot be less`,
      hint: 'set linux.resources.memory.limit, and swap to at least as much',
    });
  }
  return String(swap - memory);
}

function rdmaText(device: string, limit: { readonly hcaHandles?: number; readonly hcaObjects?: number }): string {
  return `${device} hca_handle=${limit.hcaHandles ?? 'max'} hca_object=${limit.hcaObjects ?? 'max'}`;
}

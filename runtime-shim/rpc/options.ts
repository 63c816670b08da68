// Options of a request in our words: directories by descriptors of the client,
// external things by their keys; what is not built is refused by name.
import { readlinkSync } from 'node:fs';
import { criu_cg_mode } from '../../oci-spec/images/messages.js';
import { StasisError } from '../errors/index.js';
import type { RpcOptions } from './packets.js';

export const kCloneNewNet = 0x40000000;

export interface RpcDirectories {
  readonly imagePath: string;
  readonly workPath: string;
  readonly logName: string;
}

/** A malformed or unbuilt request: CRIU's answer carries EBADRQC for it. */
export class BadRequest extends StasisError {
  constructor(message: string, hint?: string) {
    super({ code: 'OPTION_NOT_BUILT', message, ...(hint === undefined ? {} : { hint }) });
  }
}

/** Descriptor numbers are the client's. */
export function directoriesOf(options: RpcOptions, clientHostPid: number): RpcDirectories {
  const imagePath =
    options.images_dir_fd >= 0
      ? clientDirectory(clientHostPid, options.images_dir_fd, 'images_dir_fd')
      : options.images_dir;
  if (imagePath === undefined || imagePath === '')
    throw new BadRequest('cannot find the images: no directory is given');
  const workFd = options.work_dir_fd ?? -1;
  const logName = options.log_file ?? 'criu.log';
  if (logName.includes('/'))
    throw new BadRequest(`cannot log to ${JSON.stringify(logName)}: log_file must be a plain name`);
  return {
    imagePath,
    workPath: workFd >= 0 ? clientDirectory(clientHostPid, workFd, 'work_dir_fd') : imagePath,
    logName,
  };
}

function clientDirectory(clientHostPid: number, fd: number, what: string): string {
  try {
    return readlinkSync(`/proc/${clientHostPid}/fd/${fd}`);
  } catch (error) {
    throw new BadRequest(`cannot use ${what} ${fd} of pid ${clientHostPid}: ${(error as Error).message}`);
  }
}

/** What neither dump nor restore can do; false and empty values ask for nothing. */
export function refuseUnbuiltOptions(options: RpcOptions): void {
  const asked: readonly (readonly [name: string, given: boolean, why: string])[] = [
    [
      'auto_dedup',
      options.auto_dedup === true,
      'a parent without its pages no longer matches the digests by which it is trusted; to save room make a checkpoint without a parent and remove the older ones',
    ],
    [
      'lazy_pages',
      options.lazy_pages === true,
      'memory is brought in later by stasis restore --lazy-pages only, not for criu',
    ],
    ['ps', options.ps !== undefined, 'serving pages over a network is not built yet'],
    ['leave_stopped', options.leave_stopped === true, 'leaving a tree stopped is not built yet'],
    ['exec_cmd', options.exec_cmd.length > 0, 'starting a program after the restore is not built yet'],
    ['veths', options.veths.length > 0, 'restoring network devices is not built yet'],
    ['lsm_profile', (options.lsm_profile ?? '') !== '', 'changing security labels is not built yet'],
    ['lsm_mount_context', (options.lsm_mount_context ?? '') !== '', 'changing security labels is not built yet'],
    [
      'manage_cgroups_mode',
      options.manage_cgroups_mode === criu_cg_mode.FULL || options.manage_cgroups_mode === criu_cg_mode.STRICT,
      'cgroup properties are the restoring side\'s business; "soft" and "ignore" are built',
    ],
    ['empty_ns', ((options.empty_ns ?? 0) & ~kCloneNewNet) !== 0, 'only the network namespace can be left empty'],
  ];
  const found = asked.find(([, given]) => given);
  if (found !== undefined) throw new BadRequest(`cannot use ${found[0]}: ${found[2]}`);
}

/** "net[4026532000]:extRootNetNS" and its kin: kind, what is in brackets, what follows. */
export function parseExternal(text: string): { readonly kind: string; readonly inner: string; readonly key: string } {
  const parts = /^([a-z]+)\[([^\]]*)\](?::(.*))?$/s.exec(text);
  if (parts === null) throw new BadRequest(`cannot use the external ${JSON.stringify(text)}: it is not kind[what]:key`);
  return { kind: parts[1]!, inner: parts[2]!, key: parts[3] ?? '' };
}

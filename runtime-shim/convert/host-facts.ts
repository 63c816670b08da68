// The machine that packs, as annotations of images name it.
import { existsSync, readFileSync } from 'node:fs';
import { arch, release } from 'node:os';
import { readCgroupLayout } from '../container/index.js';

export function hostFacts(): {
  readonly runtimeVersion: string;
  readonly hostArch: string;
  readonly hostKernel: string;
  readonly cgroupVersion: string;
  readonly distribution: { readonly name: string; readonly version: string };
} {
  const text = existsSync('/etc/os-release') ? readFileSync('/etc/os-release', 'utf8') : '';
  const value = (key: string): string => new RegExp(`^${key}="?([^"\n]*)"?$`, 'm').exec(text)?.[1] ?? '';
  return {
    runtimeVersion: '',
    hostArch: arch() === 'x64' ? 'amd64' : arch(),
    hostKernel: release(),
    cgroupVersion: `v${readCgroupLayout().version}`,
    distribution: { name: value('ID'), version: value('VERSION_ID') },
  };
}

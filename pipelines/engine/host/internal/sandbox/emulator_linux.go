package sandbox

import (
	"debug/elf"
	"encoding/binary"
)

// Emulator tells whether programs for an architecture, by Go's name, can be executed in a root file system of their
// own, and the emulator that does it; none if the processor does.
func Emulator(arch string) (name string, ok bool) {
	if native(arch, machineArch()) {
		return "", true
	}
	head := programHead(arch)
	if name = handlerOf("/proc/sys/fs/binfmt_misc", head, true); name != "" {
		return name, true
	}
	dir, err := privateDir("", "slipway-probe-")
	if err != nil {
		return "", false
	}
	defer removeTree(dir)
	return "an emulator of the machine", executes(dir, head)
}

// programHead is how a program for an architecture begins.
func programHead(arch string) []byte {
	machines := map[string]elf.Machine{
		"amd64": elf.EM_X86_64, "386": elf.EM_386, "arm64": elf.EM_AARCH64, "arm": elf.EM_ARM, "s390x": elf.EM_S390, "riscv64": elf.EM_RISCV,
		"ppc64le": elf.EM_PPC64, "ppc64": elf.EM_PPC64, "loong64": elf.EM_LOONGARCH, "mips64le": elf.EM_MIPS, "mips64": elf.EM_MIPS, "mipsle": elf.EM_MIPS, "mips": elf.EM_MIPS,
	}
	head := make([]byte, 20)
	copy(head, elf.ELFMAG)
	head[elf.EI_CLASS], head[elf.EI_DATA], head[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	order := binary.ByteOrder(binary.LittleEndian)
	switch arch {
	case "386", "arm", "mips", "mipsle":
		head[elf.EI_CLASS] = byte(elf.ELFCLASS32)
	}
	switch arch {
	case "s390x", "ppc64", "mips", "mips64":
		head[elf.EI_DATA], order = byte(elf.ELFDATA2MSB), binary.BigEndian
	}
	order.PutUint16(head[16:], uint16(elf.ET_EXEC))
	order.PutUint16(head[18:], uint16(machines[arch]))
	return head
}

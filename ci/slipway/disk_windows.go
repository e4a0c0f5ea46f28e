package main

import "golang.org/x/sys/windows"

// freeSpace is how many bytes a user may still write where dir is; ok is false if that is not known.
func freeSpace(dir string) (free int64, ok bool) {
	name, err := windows.UTF16PtrFromString(dir)
	var n uint64
	if err == nil {
		err = windows.GetDiskFreeSpaceEx(name, &n, nil, nil)
	}
	return int64(n), err == nil
}

package deps

import (
	"strconv"
	"strings"
)

// markers are symbols with which Go's linker marks places. They are named like variables of the runtime; see
// textaddress and dodata in cmd/link/internal/ld.
var markers, endMarkers = func() (all, end map[string]bool) {
	all, end = map[string]bool{}, map[string]bool{}
	for name := range strings.FieldsSeq(`text rodata types typelink itablink noptrdata data bss noptrbss covctrs gcdata gcbss
		pclntab findfunctab symtab textsectionmap`) {
		all["runtime."+name] = true
	}
	for name := range strings.FieldsSeq(`etext erodata etypes etypelink eitablink enoptrdata edata ebss enoptrbss ecovctrs egcdata
		egcbss epclntab efindfunctab esymtab end`) {
		end["runtime."+name] = true
	}
	return all, end
}()

// classify tells to which package a symbol belongs, or to which of Tables, Assembly and C. end tells that the
// symbol only marks where something ends.
func classify(name string) (what string, end bool) {
	switch {
	case endMarkers[name]:
		return Tables, true
	case markers[name]:
		return Tables, false
	}
	for _, prefix := range []string{"type:", "go:", "$", "gclocals", "typerel.", "runtime.gcbits."} {
		if strings.HasPrefix(name, prefix) {
			return Tables, false
		}
	}
	for _, prefix := range []string{"_cgo", "x_cgo", "crosscall", "DW.ref."} {
		if strings.HasPrefix(name, prefix) {
			return C, false
		}
	}
	// Type arguments, receivers and literals have paths of packages in them that are not the symbol's.
	path := name
	if i := strings.IndexAny(path, "[("); i >= 0 {
		path = path[:i]
	}
	// The first dot after the last slash ends the path. Dots of the path's last element are escaped.
	slash := strings.LastIndexByte(path, '/') + 1
	dot := strings.IndexByte(path[slash:], '.')
	switch {
	case dot == 0: // .pdata of PE and the like
		return Tables, false
	case dot < 0, strings.HasPrefix(path, "__"): // the latter are functions that Go's linker makes for 386
		return Assembly, false
	}
	// C compilers number static variables: no name in Go begins with a digit.
	if rest := path[slash+dot+1:]; rest != "" && '0' <= rest[0] && rest[0] <= '9' {
		return C, false
	}
	return unescape(path[:slash+dot]), false
}

// unescape undoes what Go's linker does to paths in the names of symbols: see PathToPrefix in
// cmd/internal/objabi.
func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				out.WriteByte(byte(v))
				i += 2
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return strings.ToValidUTF8(out.String(), "\uFFFD")
}

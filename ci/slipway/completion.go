package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

var shells = []string{"bash", "zsh", "fish"}

// flagValues are the values of flags that have a few. Those of lists can be repeated, with commas.
var flagValues = map[string][]string{
	"engine":       engines,
	"go-versions":  {"minimum", "oldstable", "stable"},
	"platforms":    {"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", "linux/s390x", "linux/ppc64le", "linux/riscv64", "windows/amd64", "windows/arm64", "darwin/amd64", "darwin/arm64"},
	"shuffle":      {"off", "on"},
	"vet-checks":   {"vet", "gofmt", "tidy", "verify", "vendor"},
	"vuln":         {"off", "check", "require"},
	"vuln-mode":    {"source", "binary"},
	"base":         {"scratch", "distroless", "alpine", "debian", "ubi"},
	"bases":        {"scratch", "distroless", "alpine", "debian", "ubi"},
	"stop-signal":  {"SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGKILL"},
	"capabilities": {"cap_net_bind_service", "cap_net_raw", "cap_net_admin"},
	"timezones":    {"all", "none"},
	"format":       {"oci", "docker"},
	"compression":  {"gzip", "zstd"},
	"smoke":        {"auto", "runc", "crun", "namespaces", "process", "service", "off"},
	"to":           {"embedded", "oci:", "tar:"},
	"password":     {"env:", "file:"},
	"ci":           ciServices,
}

// directoryFlags are those whose values are directories. The values of all others may be files.
var directoryFlags = []string{"source", "output", "modules", "vuln-db"}

// words are the arguments that are not flags.
func (c *command) words() []string {
	switch c.name {
	case "completion":
		return shells
	case "help":
		return commandNames()
	}
	return nil
}

func commandNames() []string {
	var names []string
	for _, c := range commands {
		names = append(names, c.name)
	}
	return names
}

// completable are all commands, and help.
func completable() []command {
	return append(slices.Clone(commands), command{name: "help", summary: "show what a command does, and its flags"})
}

// completionFlags are the flags of a command.
func completionFlags(c *command) []*pflag.Flag {
	if c.name == "help" || c.plain() {
		return nil
	}
	var flags []*pflag.Flag
	var config pipelines.Config
	newFlagSet(c.name, &config).VisitAll(func(f *pflag.Flag) { flags = append(flags, f) })
	return flags
}

// commonFlags are those that all commands have which have any.
func commonFlags() []*pflag.Flag {
	var common []*pflag.Flag
	for i, c := range slices.DeleteFunc(completable(), func(c command) bool { return len(completionFlags(&c)) == 0 }) {
		its := completionFlags(&c)
		if i == 0 {
			common = its
		}
		common = slices.DeleteFunc(common, func(f *pflag.Flag) bool {
			return !slices.ContainsFunc(its, func(x *pflag.Flag) bool { return x.Name == f.Name })
		})
	}
	return common
}

// ownFlags are the flags of a command beside the common ones.
func ownFlags(c *command) []*pflag.Flag {
	common := commonFlags()
	return slices.DeleteFunc(completionFlags(c), func(f *pflag.Flag) bool {
		return slices.ContainsFunc(common, func(x *pflag.Flag) bool { return x.Name == f.Name })
	})
}

// allFlags are those of all commands, each once.
func allFlags() []*pflag.Flag {
	all := commonFlags()
	for _, c := range completable() {
		for _, f := range ownFlags(&c) {
			if !slices.ContainsFunc(all, func(x *pflag.Flag) bool { return x.Name == f.Name }) {
				all = append(all, f)
			}
		}
	}
	return all
}

func isList(f *pflag.Flag) bool {
	_, ok := f.Value.(pflag.SliceValue)
	return ok
}

// printCompletion writes what teaches a shell to complete the command line. It is made of the flag sets.
func printCompletion(w io.Writer, args []string) error {
	const next = "It is bash, zsh or fish, such as: source <(slipway completion bash)"
	if len(args) != 1 {
		return fault.Usagef(next, "completion: name one shell")
	}
	write := map[string]func() string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[args[0]]
	if write == nil {
		return fault.Usagef(fault.Nearest(args[0], shells), "completion: there is nothing for the shell %q", args[0])
	}
	_, err := io.WriteString(w, write())
	return err
}

// flagWords are flags as bash completes them: those that take a value end in an equals sign.
func flagWords(flags []*pflag.Flag) string {
	words := []string{}
	for _, f := range flags {
		word := "--" + f.Name
		if f.NoOptDefVal == "" {
			word += "="
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

func bashCompletion() string {
	var own, args, values strings.Builder
	for _, c := range completable() {
		if flags := ownFlags(&c); len(flags) > 0 {
			fmt.Fprintf(&own, "\t%s) flags+=' %s' ;;\n", c.name, flagWords(flags))
		}
		if words := c.words(); len(words) > 0 {
			fmt.Fprintf(&args, "\t\t%s) COMPREPLY=($(compgen -W '%s' -- \"$cur\")) ;;\n", c.name, strings.Join(words, " "))
		}
		if len(completionFlags(&c)) == 0 {
			fmt.Fprintf(&own, "\t%s) flags= ;;\n", c.name)
		}
	}
	var booleans []string
	for _, f := range allFlags() {
		switch v := flagValues[f.Name]; {
		case f.NoOptDefVal != "":
			booleans = append(booleans, "--"+f.Name)
		case slices.Contains(directoryFlags, f.Name):
			fmt.Fprintf(&values, "\t\t--%s) _slipway_files -d \"$cur\" ;;\n", f.Name)
		case v != nil && isList(f):
			fmt.Fprintf(&values, "\t\t--%s) _slipway_list \"$cur\" '%s' ;;\n", f.Name, strings.Join(v, " "))
		case v != nil:
			fmt.Fprintf(&values, "\t\t--%s) COMPREPLY=($(compgen -W '%s' -- \"$cur\")) ;;\n", f.Name, strings.Join(v, " "))
		}
	}
	return `# Completion of slipway for bash: source <(slipway completion bash)

# The last element of a list with commas.
_slipway_list() {
	local before=
	[[ $1 == *,* ]] && before=${1%,*},
	COMPREPLY=($(compgen -P "$before" -W "$2" -- "${1##*,}"))
}

# compopt is of bash 4, and there for completions only.
_slipway_files() {
	COMPREPLY=($(compgen "$1" -- "$2"))
	compopt -o filenames 2>/dev/null
}

_slipway() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} flag= flags
	COMPREPLY=()
	if ((COMP_CWORD == 1)); then
		COMPREPLY=($(compgen -W '` + strings.Join(append(commandNames(), "help"), " ") + `' -- "$cur"))
		return
	fi
	flags='` + flagWords(commonFlags()) + ` --help'
	case ${COMP_WORDS[1]} in
` + own.String() + `	esac
	# Bash takes --flag=value apart at the equals sign.
	if [[ $cur == "=" ]]; then
		flag=$prev cur=
	elif [[ $prev == "=" ]]; then
		flag=${COMP_WORDS[COMP_CWORD-2]}
	elif [[ $prev == --* && ' ` + strings.Join(append(booleans, "--help"), " ") + ` ' != *" $prev "* ]]; then
		flag=$prev
	fi
	if [[ -n $flag ]]; then
		case $flag in
` + values.String() + `		*) _slipway_files -f "$cur" ;;
		esac
	elif [[ $cur == -* ]]; then
		COMPREPLY=($(compgen -W "$flags" -- "$cur"))
	else
		case ${COMP_WORDS[1]} in
` + args.String() + `		*) _slipway_files -f "$cur" ;;
		esac
	fi
	# After a flag's equals sign, or oci:, more is to come.
	case ${COMPREPLY[0]:-} in
	*=|*:) compopt -o nospace 2>/dev/null ;;
	esac
	return 0
}

complete -F _slipway slipway
`
}

var zshEscape = strings.NewReplacer("'", `'\''`, "[", `\[`, "]", `\]`, ":", `\:`)

func zshFlag(f *pflag.Flag) string {
	argument, usage := pflag.UnquoteUsage(f)
	text := "--" + f.Name
	if f.NoOptDefVal == "" {
		text += "="
	}
	text += "[" + zshEscape.Replace(usage) + "]"
	var v []string
	for _, x := range flagValues[f.Name] {
		v = append(v, strings.ReplaceAll(x, ":", `\:`))
	}
	switch {
	case f.NoOptDefVal != "":
		return "'" + text + "'"
	case slices.Contains(directoryFlags, f.Name):
		text += ":" + argument + ":_files -/"
	case v != nil && isList(f):
		text += ":" + argument + ":_sequence compadd - " + strings.Join(v, " ")
	case v != nil:
		text += ":" + argument + ":(" + strings.Join(v, " ") + ")"
	default:
		text += ":" + zshEscape.Replace(argument) + ":_files"
	}
	return "'" + text + "'"
}

func zshCompletion() string {
	var b strings.Builder
	b.WriteString("#compdef slipway\n# Completion of slipway for zsh: source <(slipway completion zsh), or as the file _slipway in a directory of fpath.\n\n_slipway() {\n\tlocal -a commands flags\n\tcommands=(\n")
	for _, c := range completable() {
		fmt.Fprintf(&b, "\t\t'%s:%s'\n", c.name, strings.NewReplacer("'", `'\''`, ":", `\:`).Replace(c.summary))
	}
	b.WriteString("\t)\n\tif (( CURRENT == 2 )); then\n\t\t_describe -t commands command commands\n\t\treturn\n\tfi\n\tflags=(\n")
	for _, f := range commonFlags() {
		b.WriteString("\t\t" + zshFlag(f) + "\n")
	}
	b.WriteString("\t\t'--help[show what the command does]'\n\t)\n\tcase $words[2] in\n")
	for _, c := range completable() {
		own, words := ownFlags(&c), c.words()
		if len(own) == 0 && len(words) == 0 && !c.plain() {
			continue
		}
		b.WriteString("\t" + c.name + ")\n")
		if len(completionFlags(&c)) == 0 {
			b.WriteString("\t\tflags=()\n")
		}
		for _, f := range own {
			b.WriteString("\t\tflags+=(" + zshFlag(f) + ")\n")
		}
		if len(words) > 0 {
			b.WriteString("\t\tflags+=('1:argument:(" + strings.Join(words, " ") + ")')\n")
		}
		b.WriteString("\t\t;;\n")
	}
	b.WriteString("\tesac\n\tshift words\n\t(( CURRENT-- ))\n\t_arguments $flags '*:file:_files'\n}\n\nif [[ $funcstack[1] == _slipway ]]; then\n\t_slipway \"$@\"\nelse\n\tcompdef _slipway slipway\nfi\n")
	return b.String()
}

func fishFlag(f *pflag.Flag, condition string) string {
	quote := strings.NewReplacer(`\`, `\\`, "'", `\'`)
	_, usage := pflag.UnquoteUsage(f)
	line := "complete -c slipway -n '" + condition + "' -l " + f.Name + " -d '" + quote.Replace(usage) + "'"
	v := strings.Join(flagValues[f.Name], " ")
	switch {
	case f.NoOptDefVal != "":
	case slices.Contains(directoryFlags, f.Name):
		line += " -x -a '(__fish_complete_directories)'"
	case v != "" && isList(f):
		line += " -x -a '(__fish_append , " + v + ")'"
	case v != "":
		line += " -x -a '" + v + "'"
	default:
		line += " -r"
	}
	return line + "\n"
}

func fishCompletion() string {
	var b strings.Builder
	b.WriteString("# Completion of slipway for fish: slipway completion fish | source\n\n")
	var withFlags []string
	for _, c := range completable() {
		fmt.Fprintf(&b, "complete -c slipway -f -n __fish_use_subcommand -a %s -d '%s'\n", c.name, strings.ReplaceAll(c.summary, "'", `\'`))
		if words := c.words(); len(words) > 0 {
			fmt.Fprintf(&b, "complete -c slipway -f -n '__fish_seen_subcommand_from %s' -a '%s'\n", c.name, strings.Join(words, " "))
		}
		if len(completionFlags(&c)) > 0 {
			withFlags = append(withFlags, c.name)
		}
	}
	b.WriteByte('\n')
	for _, f := range commonFlags() {
		b.WriteString(fishFlag(f, "__fish_seen_subcommand_from "+strings.Join(withFlags, " ")))
	}
	for _, c := range completable() {
		for _, f := range ownFlags(&c) {
			b.WriteString(fishFlag(f, "__fish_seen_subcommand_from "+c.name))
		}
	}
	return b.String()
}

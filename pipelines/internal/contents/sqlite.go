package contents

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// database is a file of SQLite, read as https://www.sqlite.org/fileformat2.html has it.
type database struct {
	file     []byte
	pageSize int
}

// countRows counts the rows of a table. A database that is damaged or hostile costs no more than reading it once.
func countRows(file []byte, table string) (int, error) {
	if len(file) < 100 || string(file[:16]) != "SQLite format 3\x00" {
		return 0, errors.New("not a database of SQLite")
	}
	d := &database{file, int(binary.BigEndian.Uint16(file[16:]))}
	if d.pageSize == 1 {
		d.pageSize = 65536
	}
	if d.pageSize < 512 || d.pageSize&(d.pageSize-1) != 0 {
		return 0, fmt.Errorf("a database of SQLite with pages of %d bytes", d.pageSize)
	}
	root := uint64(0)
	// The first page has the table of tables.
	err := d.leaves(1, func(page, cells []byte) error {
		for ; len(cells) > 0 && root == 0; cells = cells[2:] {
			root = rootOf(page, int(binary.BigEndian.Uint16(cells)), table)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	if root == 0 {
		return 0, fmt.Errorf("a database of SQLite without a table %s", table)
	}
	rows := 0
	err = d.leaves(root, func(_, cells []byte) error {
		rows += len(cells) / 2
		return nil
	})
	return rows, err
}

// leaves visits the leaves of a table's tree, with the offsets of the cells in a page: two bytes each, one cell a row.
func (d *database) leaves(root uint64, visit func(page, cells []byte) error) error {
	seen := make([]bool, len(d.file)/d.pageSize+1)
	var todo []uint64
	add := func(number uint64) error {
		if number == 0 || number >= uint64(len(seen)) || seen[number] {
			return fmt.Errorf("a database of SQLite that is damaged: page %d of %d", number, len(seen)-1)
		}
		seen[number] = true
		todo = append(todo, number)
		return nil
	}
	if err := add(root); err != nil {
		return err
	}
	for len(todo) > 0 {
		number := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		page := d.file[(int(number)-1)*d.pageSize:][:d.pageSize]
		header := page
		if number == 1 {
			header = page[100:]
		}
		const interior, leaf = 0x05, 0x0d
		cells := header[8:]
		if header[0] == interior {
			if err := add(uint64(binary.BigEndian.Uint32(cells))); err != nil {
				return err
			}
			cells = cells[4:]
		}
		n := 2 * int(binary.BigEndian.Uint16(header[3:]))
		if n > len(cells) || header[0] != interior && header[0] != leaf {
			return fmt.Errorf("a database of SQLite that is damaged: page %d is none of a table", number)
		}
		cells = cells[:n]
		if header[0] == leaf {
			if err := visit(page, cells); err != nil {
				return err
			}
			continue
		}
		for ; len(cells) > 0; cells = cells[2:] {
			at := int(binary.BigEndian.Uint16(cells))
			if at+4 > len(page) {
				return fmt.Errorf("a database of SQLite that is damaged: page %d has no cell at %d", number, at)
			}
			if err := add(uint64(binary.BigEndian.Uint32(page[at:]))); err != nil {
				return err
			}
		}
	}
	return nil
}

// rootOf reads a row of the table of tables: type, name, name of the table, number of the first page, and the
// statement that made it. It returns the number if the row is about the table, else 0. The statement may go on
// in other pages; what is before it never does, as a page is too large for that.
func rootOf(page []byte, at int, table string) uint64 {
	row := page[min(at, len(page)):]
	_, row = varint(row) // its length
	_, row = varint(row) // its number
	length, types := varint(row)
	if length > uint64(len(row)) || len(row)-len(types) > int(length) {
		return 0
	}
	types, values := row[len(row)-len(types):length], row[length:]
	var column [4][]byte
	for i := range column {
		var kind uint64
		kind, types = varint(types)
		size := kind
		switch {
		case kind >= 12: // a blob or a text
			size = (kind - 12) / 2
		case kind > 6: // a number that has no bytes, or one of 8 bytes
			return 0
		case kind > 4:
			size = 2*kind - 4
		}
		if size > uint64(len(values)) {
			return 0
		}
		column[i], values = values[:size], values[size:]
	}
	if string(column[0]) != "table" || string(column[1]) != table || len(column[3]) > 8 {
		return 0
	}
	root := uint64(0)
	for _, b := range column[3] {
		root = root<<8 | uint64(b)
	}
	return root
}

// varint reads a number of one to nine bytes, of which the last has eight bits. What is cut off is 0.
func varint(b []byte) (uint64, []byte) {
	n := uint64(0)
	for i, c := range b {
		if i == 8 {
			return n<<8 | uint64(c), b[9:]
		}
		n = n<<7 | uint64(c&0x7f)
		if c < 0x80 {
			return n, b[i+1:]
		}
	}
	return 0, nil
}
